"""Aesthetic score V2.5: a linear map of SigLIP's image embedding, on a scale of 1 to 10.

    r = w . u + b,   u = f(pixels) / |f(pixels)|

The published head (https://github.com/discus0434/aesthetic-predictor-v2-5) is a stack of linear layers without
activations (1152-1024-128-64-16-1), here one affine map: |w| = 25.5, b = 1.94. It is under the AGPL-3.0, weights
included: it is not shipped with the toolkit, and is downloaded only when this reward is asked for.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from rewards._affine import affine, read_head
from rewards._base import Reward
from rewards._card import Card
from rewards._config import RewardConfig
from rewards._load import given_file, url_file
from rewards._siglip import SiglipTowers

HEAD_URL = "https://github.com/discus0434/aesthetic-predictor-v2-5/raw/main/models/aesthetic_predictor_v2_5.pth"
HEAD_SHA256 = "a6caf256b3dc434273c98dcb12f6bf17c5d4fc647d8df11f038386923dd06220"


class AestheticV25Config(RewardConfig):
    name: Literal["aesthetic_v25"] = "aesthetic_v25"
    model: str = "google/siglip-so400m-patch14-384"
    """The SigLIP whose image embedding the head reads: a folder or a Hub id in HF's format."""
    head: str | None = None
    """File of a head (scoring_head.N.weight and .bias); default: the published one, downloaded (AGPL-3.0)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the image tower; its pool, norm and the head are always computed in float32."""

    card = Card(
        measures="How pleasing people would rate a picture, illustrations included, whatever it shows.",
        range="-23 to 27, 1 to 10 in use; from 5.5 on it is called good",
        size="428 M (SigLIP so400m, image tower)",
        hacking="One polished illustration for every prompt, shallow focus, glowing skin.",
        partner="clip",
        licences={"aesthetic-predictor-v2-5": "AGPL-3.0"},
    )

    def licences(self) -> dict[str, str]:
        return super().licences() | self._of_checkpoint(self.model)


class AestheticV25(Reward):
    """Predicted human rating; higher is more pleasing. Prompts are ignored."""

    Config = AestheticV25Config

    def __init__(self, config: AestheticV25Config):
        super().__init__(config)
        self.siglip = SiglipTowers(config.model, getattr(torch, config.dtype), text=False)
        if config.head is not None:
            file = given_file("aesthetic_v25", "head", config.head)
        else:
            file = url_file("aesthetic_v25", "head", HEAD_URL, "aesthetic_predictor_v2_5.pth", HEAD_SHA256)
        weight, bias = affine(read_head(file, "scoring_head"))
        self.register_buffer("weight", weight.float())
        self.register_buffer("bias", bias.float())

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.siglip.images(images) @ self.get_buffer("weight") + self.get_buffer("bias")
