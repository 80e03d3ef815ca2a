"""Sharpness: the variance of the Laplacian of an image's luma, or the energy of its gradient.

    Y = 0.299 R + 0.587 G + 0.114 B in levels of 255
    laplacian   r = var(L * Y),   L = [[0, 1, 0], [1, -4, 1], [0, 1, 0]]
    gradient    r = mean (Y[i, j+1] - Y[i, j])^2 + mean (Y[i+1, j] - Y[i, j])^2

Common measures of focus (Pech-Pacheco et al. 2000; Subbarao et al. 1993). The Laplacian's borders are mirrored at the
outermost pixel; a side of one pixel has no gradient along it.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from rewards._base import Reward
from rewards._card import Card
from rewards._config import RewardConfig
from rewards.brightness import LUMA


class SharpnessConfig(RewardConfig):
    name: Literal["sharpness"] = "sharpness"
    form: Literal["laplacian", "gradient"] = "laplacian"
    """The variance of the Laplacian, or the energy of the gradient."""

    card = Card(
        measures="Focus and fine texture: the variance of the Laplacian, or the energy of the gradient.",
        range="0 to about 1e6",
        size="no network",
        hacking="Pixel noise and checkerboards.",
        partner="aesthetic",
    )


class Sharpness(Reward):
    """Variance of the Laplacian, or energy of the gradient; higher is sharper. Prompts are ignored."""

    Config = SharpnessConfig
    config: SharpnessConfig

    def __init__(self, config: SharpnessConfig):
        super().__init__(config)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        luma = (255 * images * images.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
        if self.config.form == "gradient":
            steps = [luma.diff(dim=dim).square().flatten(1) for dim in (2, 3)]
            return torch.stack([s.mean(1) if s.shape[1] else s.sum(1) for s in steps]).sum(0)
        kernel = images.new_tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)
        for sides, length in (((1, 1, 0, 0), luma.shape[3]), ((0, 0, 1, 1), luma.shape[2])):
            luma = pad(luma, sides, mode="reflect" if length > 1 else "replicate")  # a single pixel has no other side
        return conv2d(luma, kernel).flatten(1).var(-1, correction=0)
