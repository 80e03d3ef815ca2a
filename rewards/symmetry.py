"""Symmetry: how little an image differs from its mirror image.

r = -mean (x - flip(x))^2 over the chosen axes, in [-1, 0]; dr/dx = -4 (x - flip(x)) / n. After Clark et al. 2023,
arXiv:2309.17400, where it shows what a reward without any network can do.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from rewards._base import Reward
from rewards._card import Card
from rewards._config import RewardConfig

AXES = {"horizontal": (3,), "vertical": (2,), "both": (3, 2)}


class SymmetryConfig(RewardConfig):
    name: Literal["symmetry"] = "symmetry"
    axis: Literal["horizontal", "vertical", "both"] = "horizontal"
    """`horizontal`: left and right halves mirror each other; `both`: the mean over the two."""

    card = Card(
        measures="How little an image differs from its mirror image.",
        range="[-1, 0]",
        size="no network",
        hacking="One object in the middle, seen from the front, or a kaleidoscope; in the end a flat colour.",
        partner="clip",
    )


class Symmetry(Reward):
    """Minus the mean squared difference to the mirror image; higher is more symmetric. Prompts are ignored."""

    Config = SymmetryConfig

    def __init__(self, config: SymmetryConfig):
        super().__init__(config)
        self.axes = AXES[config.axis]

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        differences = [(images - images.flip(axis)).square().mean((1, 2, 3)) for axis in self.axes]
        return -sum(differences) / len(self.axes)  # type: ignore[return-value]
