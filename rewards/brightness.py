"""Mean luma: the simplest reward there is, differentiable in closed form; a first run and many tests use it.

r(x) = mean over pixels of 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601), in [0, 1]; dr/dx = weight / (H W).
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from rewards._base import Reward
from rewards._card import Card
from rewards._config import RewardConfig

LUMA = (0.299, 0.587, 0.114)


class BrightnessConfig(RewardConfig):
    name: Literal["brightness"] = "brightness"

    card = Card(
        measures="Mean luma of an image.",
        range="[0, 1]",
        size="no network",
        hacking="A white image.",
        partner="clip",
    )


class Brightness(Reward):
    """Mean luma of an image, in [0, 1]; higher is brighter. Prompts are ignored."""

    Config = BrightnessConfig

    def __init__(self, config: BrightnessConfig):
        super().__init__(config)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return (images * images.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1).mean((1, 2))
