"""The gold utility of the shapes world: graded verdict + taste, in [0, 2]; what its preferences are drawn from."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from align.shapes import captions
from align.shapes.taste import gold
from rewards._base import Reward
from rewards._card import Card
from rewards._config import RewardConfig


class GoldConfig(RewardConfig):
    name: Literal["gold"] = "gold"

    card = Card(
        measures="The graded verdict plus the taste that the embedded preferences are drawn from.",
        range="[0, 2]",
        size="no network",
        hacking="Nothing known: it is the truth of the embedded world. It watches.",
        partner="judge",
    )

    def has_gradient(self) -> bool:
        return False

    def unreadable(self, prompts: Iterable[str]) -> Iterator[str]:
        return captions.unreadable(prompts)


class Gold(Reward):
    """In [0, 2]; higher is liked more. Prompts must be captions of the shapes grammar."""

    Config = GoldConfig

    def __init__(self, config: GoldConfig):
        super().__init__(config)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return gold(images, prompts).to(images.device, torch.float32)
