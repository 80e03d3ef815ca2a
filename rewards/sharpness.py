"""Sharpness: the variance of the Laplacian of an image's luma.

    r = var(L * Y),   L = [[0, 1, 0], [1, -4, 1], [0, 1, 0]],  Y = 0.299 R + 0.587 G + 0.114 B in levels of 255

A common measure of focus (Pech-Pacheco et al. 2000). Borders are mirrored at the outermost pixel.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from torch.nn.functional import conv2d, pad

from rewards._base import Reward
from rewards._card import Card
from rewards._config import RewardConfig
from rewards.brightness import LUMA


class SharpnessConfig(RewardConfig):
    name: Literal["sharpness"] = "sharpness"

    card = Card(
        measures="Focus and fine texture: the variance of the Laplacian.",
        range="0 to about 1e6",
        size="no network",
        hacking="Pixel noise and checkerboards.",
        partner="aesthetic",
    )


class Sharpness(Reward):
    """Variance of the Laplacian; higher is sharper. Prompts are ignored."""

    Config = SharpnessConfig

    def __init__(self, config: SharpnessConfig):
        super().__init__(config)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        luma = (255 * images * images.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
        kernel = images.new_tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)
        for sides, length in (((1, 1, 0, 0), luma.shape[3]), ((0, 0, 1, 1), luma.shape[2])):
            luma = pad(luma, sides, mode="reflect" if length > 1 else "replicate")  # a single pixel has no other side
        return conv2d(luma, kernel).flatten(1).var(-1, correction=0)
