"""The strict verdict of the shapes judge: 1 if a picture meets its caption in everything, else 0."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from align.shapes import captions
from align.shapes.judge import judge
from rewards._base import Reward
from rewards._card import Card
from rewards._config import RewardConfig


class JudgeConfig(RewardConfig):
    name: Literal["judge"] = "judge"

    card = Card(
        measures="Whether a picture meets its caption in everything; read off the pixels, without learning.",
        range="0 or 1",
        size="no network",
        hacking="Nothing known: it is right. It watches, and has no gradient to train on.",
        partner="gold",
    )

    def has_gradient(self) -> bool:
        return False

    def unreadable(self, prompts: Iterable[str]) -> Iterator[str]:
        return captions.unreadable(prompts)


class Judge(Reward):
    """0 or 1; higher is right. Prompts must be captions of the shapes grammar."""

    Config = JudgeConfig

    def __init__(self, config: JudgeConfig):
        super().__init__(config)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.tensor([float(v.strict) for v in judge(images, prompts)], device=images.device)
