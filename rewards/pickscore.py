"""PickScore: the scaled cosine of a CLIP ViT-H/14 tuned on the choices of users between two images of their prompt.

    r = exp(scale) u . w,   P(x is picked over y) = sigmoid(r(x) - r(y))

Kirstain et al. 2023, arXiv:2305.01569; weights https://huggingface.co/yuvalkirstain/PickScore_v1. Others divide the
score by 26, to bring it near [0, 1] for a sum with other rewards: `unit`.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from rewards._base import Reward
from rewards._card import Card
from rewards._clip import HFClip
from rewards._config import RewardConfig


class PickScoreConfig(RewardConfig):
    name: Literal["pickscore"] = "pickscore"
    model: str = "yuvalkirstain/PickScore_v1"
    """A folder or Hub id in HF's format."""
    processor: str | None = None
    """Where tokenizer and preprocessing are; default: LAION's CLIP ViT-H/14 for the published model, else the model."""
    form: Literal["logit", "cosine", "unit"] = "logit"
    """`logit`: as published; `cosine`: without the scale; `unit`: the logit over 26."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the image tower; projection and cosine are always computed in float32."""

    card = Card(
        measures="Which of two images people would pick for a prompt: looks and match together.",
        range="0 to 100, 18 to 24 in use (SD 1.5 about 20.5, SDXL about 22); a difference of 1 is odds of e to 1",
        size="986 M (ViT-H/14)",
        hacking="Glossy, over-sharp, saturated pictures in one style, with fine texture that the prompt does not ask.",
        partner="imagereward",
    )

    def licences(self) -> dict[str, str]:
        return self._of_checkpoint(self.model)


class PickScore(Reward):
    """Logit of being picked; higher is preferred."""

    Config = PickScoreConfig

    def __init__(self, config: PickScoreConfig):
        super().__init__(config)
        published = config.model == "yuvalkirstain/PickScore_v1"
        processor = config.processor or ("laion/CLIP-ViT-H-14-laion2B-s32B-b79K" if published else None)
        self.clip = HFClip(config.model, getattr(torch, config.dtype), processor)
        scale = self.clip.logit_scale
        self.factor = {"logit": scale, "cosine": 1.0, "unit": scale / 26}[config.form]

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.factor * (self.clip.images(images) * self.clip.prompts(prompts, images.device)).sum(-1)
