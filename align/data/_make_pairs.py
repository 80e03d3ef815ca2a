"""Preference pairs from a model and a judge.

best_worst   the image with the highest score against the one with the lowest: a pair a prompt
all          every two images of a prompt: n (n - 1)/2 pairs

P(a preferred to b) = sigmoid((score_a - score_b)/temperature)      Bradley & Terry 1952; temperature 0: the better
"""

import itertools
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from align.data._make import JudgedConfig
from align.data._pairs import FILE_NAME
from samplers import generator


class MakeConfig(JudgedConfig):
    """What the pairs are made of."""

    file_name: ClassVar[str] = FILE_NAME
    images: ClassVar[tuple[str, ...]] = ("winner", "loser")

    choose: Literal["best_worst", "all"] = "best_worst"
    """Which of a prompt's images are compared."""
    temperature: float = Field(default=0.0, ge=0)
    """Of the Bradley-Terry noise in the labels, in units of the judge's score; 0: none."""
    margin: float = Field(default=0.0, ge=0)
    """Leave out pairs whose scores are closer than this."""
    ties: Literal["drop", "keep"] = "drop"
    """Pairs of equal scores: left out, or written with "tie": true (for a preference model; DPO skips them)."""

    def records(self, totals: Tensor, seed: int, prompt: int) -> Iterator[dict[str, Any]]:
        for a, b in compared(self.choose, totals):
            record = labelled(self, totals, a, b, seed, prompt)
            if record is not None:
                yield record

    def why_empty(self) -> str:
        return (
            f"every two images scored alike or closer than margin={self.margin}. Lower data.make.margin, or give more "
            "images a prompt."
        )


def compared(choose: Literal["best_worst", "all"], totals: Tensor) -> list[tuple[int, int]]:
    """Numbers of the images that are compared; totals: (n,)."""
    if choose == "all":
        return list(itertools.combinations(range(len(totals)), 2))
    best = int(totals.argmax())
    worst = int(totals.argmin())
    return [(best, worst if worst != best else (best + 1) % len(totals))]  # all alike: a tie of two images


def labelled(config: Any, totals: Tensor, a: int, b: int, seed: int, prompt: int) -> dict[str, Any] | None:
    """{winner, loser: numbers of the images; margin: by how much the judge likes the winner more; tie}, or None."""
    margin = float(totals[a] - totals[b])
    tie = margin == 0
    if (tie and config.ties == "drop") or (not tie and abs(margin) < config.margin):
        return None
    prefers_a = margin >= 0
    if config.temperature and not tie:
        draw = torch.rand((), generator=generator(seed, f"label/{a}/{b}", prompt), dtype=torch.float64)
        prefers_a = float(draw) < float(torch.sigmoid(torch.tensor(margin / config.temperature, dtype=torch.float64)))
    winner, loser = (a, b) if prefers_a else (b, a)
    return {"winner": winner, "loser": loser, "margin": margin if prefers_a else -margin, "tie": tie}
