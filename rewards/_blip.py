"""BLIP's towers, of which three rewards are made: a ViT and a BERT whose every layer also attends to the image.

    h = BERT(tokens, cross-attending to ViT(pixels))[CLS]        (Li et al. 2022, arXiv:2201.12086)

Networks are transformers' own; checkpoints that come in BLIP's original layout are renamed key by key. Both towers may
run in bfloat16, what is read from them is float32.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rewards._clip import single
from rewards._load import CONSTANTS, load_strictly, load_tokenizer, read_state
from rewards._preprocess import Preprocess

_VISION = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.": "embeddings.patch_embedding.",
    "blocks.": "encoder.layers.",
    "norm.": "post_layernorm.",
}
_BLOCK = {
    "attn.qkv.": "self_attn.qkv.",
    "attn.proj.": "self_attn.projection.",
    "norm1.": "layer_norm1.",
    "norm2.": "layer_norm2.",
}


class BlipTowers(nn.Module):
    """ViT and BERT of one checkpoint."""

    def __init__(self, vision: nn.Module, text: nn.Module, tokenizer: Any, max_tokens: int, dtype: torch.dtype):
        super().__init__()
        self.vision_model = vision.to(dtype)
        self.text_encoder = text.to(dtype)
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.dtype = dtype
        self.width = int(text.config.hidden_size)  # type: ignore[union-attr,arg-type]

    def look(self, pixel_values: Tensor) -> Tensor:
        """Preprocessed images (B, 3, h, w) -> states (B, 1 + patches, D), CLS first."""
        return self.vision_model(pixel_values=pixel_values.to(self.dtype)).last_hidden_state

    def read(self, prompts: Sequence[str], states: Tensor | None, device: torch.device) -> Tensor:
        """CLS state (B, D) in float32 of each prompt, cross-attending to `states` unless there are none."""
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(device)
        seen = None if states is None else torch.ones(states.shape[:2], dtype=torch.long, device=device)
        out = self.text_encoder(
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            encoder_hidden_states=states,
            encoder_attention_mask=seen,
            is_decoder=False,  # the config says it is one, so that it has cross-attention; its mask is not causal
        )
        return single(out.last_hidden_state[:, 0])


class Mlp(nn.Module):
    """CLS state (B, D) -> (B,) through 1024, 128, 64, 16; `numbers` are the layers' in the published files."""

    def __init__(self, size: int, numbers: Sequence[int], activation: Callable[[Tensor], Tensor] | None = None):
        super().__init__()
        sizes = [size, 1024, 128, 64, 16, 1]
        linear = [nn.Linear(inner, outer) for inner, outer in pairwise(sizes)]
        self.layers = nn.ModuleDict({str(number): layer for number, layer in zip(numbers, linear, strict=True)})
        self.activation = activation

    def forward(self, state: Tensor) -> Tensor:
        *inner, last = self.layers.values()
        for layer in inner:
            state = layer(state) if self.activation is None else self.activation(layer(state))
        return last(state)[:, 0]


def blip_large(
    tokenizer: str, max_tokens: int, dtype: torch.dtype, sizes: Mapping[str, int] | None = None
) -> tuple[BlipTowers, Preprocess]:
    """ViT-L/16 at 224 pixels and BERT base, not yet loaded, and their preprocessing (torchvision's crop).

    `sizes` replaces entries of the architecture: vision_hidden_size, text_num_hidden_layers, ...
    """
    from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    sizes = dict(sizes or {})
    vision: dict[str, Any] = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 16,
    }
    text: dict[str, Any] = {
        "vocab_size": 30524,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    }
    for part, settings in (("vision", vision), ("text", text)):
        settings.update({key: sizes.pop(f"{part}_{key}") for key in list(settings) if f"{part}_{key}" in sizes})
    if sizes:
        raise ValueError(f"unknown sizes {sorted(sizes)}")
    words = load_tokenizer(tokenizer)
    words.add_tokens(["[DEC]", "[ENC]"], special_tokens=True)  # as BLIP adds them to BERT's vocabulary
    vision_config = BlipVisionConfig(**vision, layer_norm_eps=1e-6, hidden_act="gelu")
    text_config = BlipTextConfig(
        **text,
        encoder_hidden_size=vision["hidden_size"],
        max_position_embeddings=512,
        layer_norm_eps=1e-12,
        hidden_act="gelu",
        is_decoder=True,
    )
    towers = BlipVisionModel(vision_config), BlipTextModel(text_config, add_pooling_layer=False)
    side = vision["image_size"]
    preprocess = Preprocess(side, crop=(side, side), crop_rounding="torchvision")
    return BlipTowers(*towers, words, max_tokens, dtype), preprocess


def load_original(
    blip: BlipTowers, file: Path, prefix: str = "", unused: tuple[str, ...] = ("vision_proj.", "text_proj.")
) -> None:
    """Loads `blip` strictly from a file in BLIP's own layout: names below `prefix`, those in `unused` left out."""
    state = {key.removeprefix(prefix): value for key, value in read_state(file).items()}
    wanted = {key: value for key, value in state.items() if not key.startswith(unused) and not key.endswith(CONSTANTS)}
    load_strictly(blip, {renamed(key): value for key, value in wanted.items()}, file)


def renamed(key: str) -> str:
    """A key of BLIP's own layout -> transformers'; those of the text encoder and of heads are the same."""
    if not key.startswith("visual_encoder."):
        return key
    key = key.removeprefix("visual_encoder.")
    start = next((old for old in _VISION if key.startswith(old)), "")
    key = _VISION.get(start, "") + key.removeprefix(start)
    for old, new in _BLOCK.items():
        key = key.replace(f".{old}", f".{new}")
    return f"vision_model.{key}"
