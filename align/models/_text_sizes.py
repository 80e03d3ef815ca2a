"""The published text encoders by their configs: (class of transformers, settings that differ from its defaults)."""

from typing import Any

Encoder = tuple[str, dict[str, Any]]
_L: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_BIG_G: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
_QWEN3_4B: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}

CLIP_L: Encoder = ("CLIPTextModel", _L)
CLIP_L_PROJECTED: Encoder = ("CLIPTextModelWithProjection", _L | {"projection_dim": 768})
CLIP_BIG_G: Encoder = ("CLIPTextModelWithProjection", _BIG_G)
CLIP_H: Encoder = (
    "CLIPTextModel",
    {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
    },
)
"""Of Stable Diffusion 2: OpenCLIP ViT-H/14 without its last layer."""
T5_XXL: Encoder = (
    "T5EncoderModel",
    {
        "vocab_size": 32128,
        "d_model": 4096,
        "d_kv": 64,
        "d_ff": 10240,
        "num_layers": 24,
        "num_heads": 64,
        "feed_forward_proj": "gated-gelu",
    },
)
GEMMA2_2B: Encoder = (
    "Gemma2Model",
    {
        "vocab_size": 256000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
    },
)
QWEN3_4B_CAUSAL: Encoder = ("Qwen3ForCausalLM", _QWEN3_4B)
QWEN3_4B: Encoder = ("Qwen3Model", _QWEN3_4B)
QWEN25_VL_7B: Encoder = (
    "Qwen2_5_VLForConditionalGeneration",
    {
        "text_config": {
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
        },
        "vision_config": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584},
    },
)
QWEN3_VL_4B: Encoder = (
    "Qwen3VLModel",
    {
        "text_config": {key: value for key, value in _QWEN3_4B.items() if key != "tie_word_embeddings"},
        "vision_config": {
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_heads": 16,
            "out_hidden_size": 2560,
            "deepstack_visual_indexes": [5, 11, 17],
        },
        "tie_word_embeddings": True,
    },
)
