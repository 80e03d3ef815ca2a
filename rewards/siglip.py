"""SigLIP score: how well an image matches its prompt, by SigLIP or SigLIP 2.

    logit:       r = exp(scale) u . w + bias       log-odds that image and prompt belong together
    cosine:      r = u . w                         about 0.05 to 0.2 for good pairs
    probability: r = sigmoid(logit)                heavy tails: a poor reward to train on

Zhai et al. 2023, arXiv:2303.15343; Tschannen et al. 2025, arXiv:2502.14786. At a fixed resolution, to
which images are squashed, or at their own shape (naflex).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from rewards._base import Reward
from rewards._card import Card
from rewards._config import RewardConfig
from rewards._load import hf_config
from rewards._naflex import NaflexTowers
from rewards._siglip import SiglipTowers


class SiglipConfig(RewardConfig):
    name: Literal["siglip"] = "siglip"
    model: str = "google/siglip2-so400m-patch14-384"
    """A folder or Hub id of a SiglipModel, or a Siglip2Model (naflex), in HF's format."""
    form: Literal["logit", "cosine", "probability"] = "logit"
    """`logit`: the log-odds of a match; `cosine`; `probability`, which saturates."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the image tower; its pool, norm and the cosine are always computed in float32."""

    card = Card(
        measures="How well an image matches its prompt, by a sigmoid loss on pairs instead of CLIP's softmax.",
        range="logit: 0 is even odds; cosine [-1, 1], 0.05 to 0.2 in use; probability [0, 1]",
        size="1136 M (so400m, patch 14, 384 pixels)",
        hacking="The prompt's words as lettering, its objects as clean cut-outs on a plain ground.",
        partner="imagereward",
    )

    def licences(self) -> dict[str, str]:
        return self._of_checkpoint(self.model)


class Siglip(Reward):
    """Log-odds (or cosine, or probability) of a match; higher is a better match."""

    Config = SiglipConfig

    def __init__(self, config: SiglipConfig):
        super().__init__(config)
        own_shape = hf_config(config.model).get("model_type") == "siglip2"
        self.siglip = (NaflexTowers if own_shape else SiglipTowers)(config.model, getattr(torch, config.dtype))
        self.form = config.form

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        cosine = (self.siglip.images(images) * self.siglip.prompts(prompts, images.device)).sum(-1)
        if self.form == "cosine":
            return cosine
        logit = self.siglip.logit_scale * cosine + self.siglip.logit_bias
        return logit if self.form == "logit" else logit.sigmoid()
