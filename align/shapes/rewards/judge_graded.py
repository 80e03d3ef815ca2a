"""The graded verdict of the shapes judge: the share of a caption's requirements that a picture meets, in [0, 1]."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from align.shapes import captions
from align.shapes.judge import judge
from rewards._base import Reward
from rewards._card import Card
from rewards._config import RewardConfig


class JudgeGradedConfig(RewardConfig):
    name: Literal["judge_graded"] = "judge_graded"

    card = Card(
        measures="The share of a caption's requirements that a picture meets; read off the pixels.",
        range="[0, 1]",
        size="no network",
        hacking="Nothing known: it is right. It watches, and has no gradient to train on.",
        partner="gold",
    )

    def has_gradient(self) -> bool:
        return False

    def unreadable(self, prompts: Iterable[str]) -> Iterator[str]:
        return captions.unreadable(prompts)


class JudgeGraded(Reward):
    """In [0, 1]; higher meets more. Prompts must be captions of the shapes grammar."""

    Config = JudgeGradedConfig

    def __init__(self, config: JudgeGradedConfig):
        super().__init__(config)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.tensor([v.graded for v in judge(images, prompts)], device=images.device)
