"""Tiny Qwen-VL models in stock format, and HPSv3's file on one, in the names of transformers 4.45."""

from pathlib import Path

import torch
from reward_toys import randomise

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
SPECIAL += ["<|video_pad|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def processor(folder: Path, patch: int = 4):
    """Bytes as tokens, images of 256 to 1024 pixels, two by two patches merged."""
    from transformers import Qwen2Tokenizer, Qwen2VLImageProcessorPil, Qwen2VLProcessor, Qwen2VLVideoProcessor
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    symbols = [*bytes_to_unicode().values(), *SPECIAL]
    tokenizer = Qwen2Tokenizer({token: k for k, token in enumerate(symbols)}, [])
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    size = {"shortest_edge": 256, "longest_edge": 1024}
    images = Qwen2VLImageProcessorPil(patch_size=patch, merge_size=2, size=size)
    made = Qwen2VLProcessor(images, tokenizer, Qwen2VLVideoProcessor(patch_size=patch), chat_template=TEMPLATE)
    made.save_pretrained(folder)
    return made


def qwen(folder: Path):
    """A Qwen2-VL of two layers; returns the network."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    made = processor(folder)
    ids = {name: made.tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end")}
    text = {
        "vocab_size": len(made.tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
    }  # fmt: skip
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
    config = Qwen2VLConfig(
        text_config=text, vision_config=vision, image_token_id=made.image_token_id, video_token_id=made.video_token_id,
        vision_start_token_id=ids["vision_start"], vision_end_token_id=ids["vision_end"], tie_word_embeddings=False,
    )  # fmt: skip
    network = randomise(Qwen2VLForConditionalGeneration(config), seed=13)
    network.save_pretrained(folder)
    return network


def hpsv3(folder: Path, network) -> Path:
    """HPSv3's file: all of a Qwen2-VL with one more token, under its old names, and the head."""
    from safetensors.torch import save_file

    from rewards.hpsv3 import head

    generator = torch.Generator().manual_seed(14)
    state = {}
    for key, value in network.state_dict().items():
        key = key.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
        if key in ("model.embed_tokens.weight", "lm_head.weight"):
            value = torch.cat([value, 0.15 * torch.randn(1, value.shape[1], generator=generator)])
        state[key] = value.detach().clone().contiguous()
    state |= {f"rm_head.{key}": value for key, value in randomise(head(32, 16), seed=15, std=0.3).state_dict().items()}
    save_file(state, folder / "HPSv3.safetensors")
    (folder / "instruction.txt").write_text("Prompt - {text_prompt}\nrate: <|Reward|>\n\nEND\n")
    return folder / "HPSv3.safetensors"
