"""Colourfulness, as people rate it: spread and strength of the opponent colours.

    r = sqrt(var(rg) + var(yb)) + 0.3 sqrt(mean(rg)^2 + mean(yb)^2),  rg = R - G,  yb = (R + G)/2 - B  in 255 levels

Hasler & Suesstrunk 2003, "Measuring colourfulness in natural images", eq. 1-6: 0 is grey, 33 moderately, 59 quite, 109
extremely colourful.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from rewards._base import Reward
from rewards._card import Card
from rewards._config import RewardConfig

TINY = 1e-6
"""In levels squared: the root of 0 has no gradient, and a grey image must not give NaN."""


class ColourfulnessConfig(RewardConfig):
    name: Literal["colourfulness"] = "colourfulness"

    card = Card(
        measures="How colourful an image is, by the spread of its opponent colours.",
        range="0 (grey) to about 250; 33 moderate, 59 quite, 109 extreme",
        size="no network",
        hacking="Patches of pure, saturated, opposite colours.",
        partner="aesthetic",
    )


class Colourfulness(Reward):
    """Hasler and Suesstrunk's measure; higher is more colourful. Prompts are ignored."""

    Config = ColourfulnessConfig

    def __init__(self, config: ColourfulnessConfig):
        super().__init__(config)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        red, green, blue = (255 * images).unbind(1)
        opponents = torch.stack([red - green, (red + green) / 2 - blue], 1).flatten(2)
        spread = opponents.var(-1, correction=0).sum(1)
        strength = opponents.mean(-1).square().sum(1)
        return (spread + TINY).sqrt() + 0.3 * (strength + TINY).sqrt()
