"""CLIP score: how well an image matches its prompt, by the cosine of their CLIP embeddings.

    cosine: r = u . w             about 0.1 to 0.4 (ViT-B/32 0.31, ViT-L/14 0.25, ViT-H/14 0.30 for good pairs)
    logit:  r = exp(scale) u . w  about 100 times that for OpenAI's and LAION's checkpoints

u and w are the unit embeddings of image and prompt (Radford et al. 2021, arXiv:2103.00020; as a metric, Hessel et al.
2021, arXiv:2104.08718, who put "A photo depicts " before the caption: `prefix`).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from rewards._base import Reward
from rewards._clip import load_clip
from rewards._config import RewardConfig


class ClipConfig(RewardConfig):
    name: Literal["clip"] = "clip"
    model: str = "openai/clip-vit-large-patch14"
    """A folder or Hub id in HF's format, or `open_clip:NAME/PRETRAINED` (open_clip:ViT-H-14/laion2b_s32b_b79k)."""
    form: Literal["cosine", "logit"] = "cosine"
    """`cosine`, or `logit`: the cosine times the checkpoint's learned scale."""
    prefix: str = ""
    """Put before every prompt."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the image tower; projection and cosine are always computed in float32."""


class Clip(Reward):
    """Cosine (or logit) between an image and its prompt; higher is a better match."""

    Config = ClipConfig

    def __init__(self, config: ClipConfig):
        super().__init__(config, licence=f"that of {config.model}")
        self.clip = load_clip(config.model, getattr(torch, config.dtype))
        self.scale = self.clip.logit_scale if config.form == "logit" else 1.0
        self.prefix = config.prefix

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        text = self.clip.prompts([self.prefix + prompt for prompt in prompts], images.device)
        return self.scale * (self.clip.images(images) * text).sum(-1)
