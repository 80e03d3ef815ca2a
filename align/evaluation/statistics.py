"""Paired statistics of many scores at once: per prompt first, over its images; then over prompts.

An interval is the 95 % percentile bootstrap over prompts of align/figures/statistics.py, the same resamples for every
score, so that what is compared within a table is compared on the same draws of prompts.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from align.figures.statistics import NUM_RESAMPLES, Comparison, Interval

AT_ONCE = 500  # resamples in memory together


class Gain(Comparison):
    """A comparison over prompts with several images each; win_rate is taken image by image."""

    wins: Interval
    """The win rate with its interval."""


def gains(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Gain]:
    """{label: scores (P, K)} of the same P prompts and K seeds -> {label: what changed}."""
    columns = []
    for label in after:
        old, new = before[label].double(), after[label].double()
        wins = (new > old).double() + 0.5 * (new == old).double()
        columns += [old.mean(1), new.mean(1), (new - old).mean(1), wins.mean(1)]
    found = intervals(torch.stack(columns, 1))
    result = {}
    for place, label in enumerate(after):
        old, new, difference, wins = found[4 * place : 4 * place + 4]
        result[label] = Gain(
            before=old,
            after=new,
            difference=difference,
            win_rate=wins.mean,
            wins=wins,
            std_before=float(before[label].double().std(correction=0)),
            num_prompts=len(before[label]),
        )
    return result


def means(scores: Mapping[str, Tensor]) -> dict[str, Interval]:
    """{label: scores (P, K)} -> {label: the mean over prompts}."""
    found = intervals(torch.stack([values.double().mean(1) for values in scores.values()], 1))
    return dict(zip(scores, found, strict=True))


def intervals(values: Tensor, *, seed: int = 0) -> list[Interval]:
    """Values (P, C) of P prompts -> the interval of each column's mean."""
    values, number = values.double(), len(values)
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for _ in range(NUM_RESAMPLES // AT_ONCE):
        drawn = torch.randint(number, (AT_ONCE, number), generator=generator)
        times = torch.zeros(AT_ONCE, number, dtype=values.dtype)  # how often each prompt is in each resample
        times.scatter_add_(1, drawn, torch.ones(drawn.shape, dtype=values.dtype))
        parts.append(times @ values / number)
    low, high = torch.cat(parts).quantile(torch.tensor([0.025, 0.975], dtype=values.dtype), dim=0)
    return [
        Interval(mean=mean, low=least, high=most)
        for mean, least, most in zip(values.mean(0).tolist(), low.tolist(), high.tolist(), strict=True)
    ]


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Of points (cost, gain) those that no other beats: none has a higher gain at the same or a lower cost."""
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    best, kept = float("-inf"), []
    for i in order:
        if points[i][1] > best:
            best = points[i][1]
            kept.append(i)
    return kept
