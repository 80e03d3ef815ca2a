"""CLIP score: how well an image matches its prompt, by the cosine of their CLIP embeddings.

    cosine:    r = u . w             about 0.1 to 0.4 (ViT-B/32 0.31, ViT-L/14 0.25, ViT-H/14 0.30 for good pairs)
    logit:     r = exp(scale) u . w  about 100 times that for OpenAI's and LAION's checkpoints
    clipscore: r = 2.5 max(u . w, 0) with "A photo depicts " before the prompt

u and w are the unit embeddings of image and prompt (Radford et al. 2021, arXiv:2103.00020); CLIPScore is Hessel et al.
2021, arXiv:2104.08718, who used ViT-B/32. Its maximum has no gradient where a cosine is negative.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from rewards._base import Reward
from rewards._card import Card
from rewards._clip import load_clip
from rewards._config import RewardConfig


class ClipConfig(RewardConfig):
    name: Literal["clip"] = "clip"
    model: str = "openai/clip-vit-large-patch14"
    """A folder or Hub id in HF's format, or `open_clip:NAME/PRETRAINED` (open_clip:ViT-H-14/laion2b_s32b_b79k)."""
    form: Literal["cosine", "logit", "clipscore"] = "cosine"
    """`cosine`; `logit`: times the checkpoint's learned scale; `clipscore`: Hessel's, 2.5 times what is above 0."""
    prefix: str | None = None
    """Put before every prompt; default: nothing, and "A photo depicts " for `clipscore`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the image tower; projection and cosine are always computed in float32."""

    card = Card(
        measures="How well an image matches its prompt, by the cosine of their CLIP embeddings.",
        range="[-1, 1], 0.1 to 0.4 in use; logit about 100 times that; clipscore [0, 2.5]",
        size="428 M (ViT-L/14)",
        hacking="Objects of the prompt repeated over the canvas, words of the prompt written into it, harsh textures.",
        partner="imagereward",
    )

    def licences(self) -> dict[str, str]:
        return self._of_checkpoint(self.model)


class Clip(Reward):
    """Cosine (or logit, or CLIPScore) between an image and its prompt; higher is a better match."""

    Config = ClipConfig

    def __init__(self, config: ClipConfig):
        super().__init__(config)
        self.clip = load_clip(config.model, getattr(torch, config.dtype))
        self.form = config.form
        default = "A photo depicts " if config.form == "clipscore" else ""
        self.prefix = default if config.prefix is None else config.prefix

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        text = self.clip.prompts([self.prefix + prompt for prompt in prompts], images.device)
        cosine = (self.clip.images(images) * text).sum(-1)
        if self.form == "clipscore":
            return 2.5 * cosine.clamp(min=0)
        return self.clip.logit_scale * cosine if self.form == "logit" else cosine
