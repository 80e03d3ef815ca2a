"""Best of n: draw images from random noises and keep, row by row, the one of the highest reward. No gradient.

The baseline of noise optimisation, and its start. Candidate 0 is the noise that plain sampling takes.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from align.noise.studio import Cost, Row, Studio

AT_ONCE = 16  # images of one forward pass, where there are fewer rows than that


@dataclass
class Found:
    """The best of each row, (B, ...) and (B,), and what it took."""

    x_T: Tensor
    reward: Tensor
    first: Tensor
    """Reward of candidate 0, (B,)."""
    candidates: int
    """Of each row."""
    seconds: float
    cost: Cost


def best_of(
    studio: Studio,
    rows: Sequence[Row],
    *,
    count: int | None = None,
    seconds: float | None = None,
) -> Found:
    """Draws until `count` candidates of each row, or until `seconds` are over; at least one."""
    started, before = time.perf_counter(), studio.cost()
    at_once = max(1, AT_ONCE // len(rows))
    x_T = studio.noise(rows)
    best = torch.full((len(rows),), -torch.inf, device=x_T.device)
    first, done = best, 0
    while done == 0 or (done < count if count else time.perf_counter() - started < (seconds or 0)):
        wave = range(done, min(done + at_once, count or done + at_once))
        noises = torch.stack([studio.noise(rows, candidate) for candidate in wave], 1)  # (B, wave, C, h, w)
        repeated = [row for row in rows for _ in wave]
        total = studio.candidates(repeated, noises.flatten(0, 1)).total.view(len(rows), len(wave))
        first = total[:, 0] if done == 0 else first
        reward, place = total.max(1)
        better = reward > best
        x_T = torch.where(better[:, None, None, None], noises[torch.arange(len(rows)), place], x_T)
        best = torch.where(better, reward.to(best), best)
        done += len(wave)
    cost = studio.cost(before)
    cost.free = done * len(rows)
    return Found(x_T, best, first, done, time.perf_counter() - started, cost)
