"""Before and after on the same prompts and seeds: means, win rate, and how sure they are.

Intervals are 95 % percentile bootstrap over prompts (Efron & Tibshirani 1993, ch. 13): the means of resamples of the
prompts, with replacement. The difference is taken prompt by prompt before it is resampled, so that what the two share
(a hard prompt, an unlucky noise) cancels.
"""

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

NUM_RESAMPLES = 10_000


class Interval(BaseModel):
    """A mean over prompts and its 95 % interval."""

    model_config = ConfigDict(frozen=True)

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


class Comparison(BaseModel):
    """One score before (the reference) and after (the trained model), image by image on the same prompts and seeds."""

    model_config = ConfigDict(frozen=True)

    before: Interval
    after: Interval
    difference: Interval
    """After - before, paired."""
    win_rate: float
    """Share of prompts on which after is higher; ties count half."""
    std_before: float
    """Standard deviation of the score over the reference's images: the scale of a difference."""
    num_prompts: int


def compare(before: Tensor, after: Tensor, *, seed: int = 0) -> Comparison:
    """Scores (n,) of the same n prompts in the same order -> their comparison."""
    before, after = before.double().cpu(), after.double().cpu()
    difference = after - before
    wins = (difference > 0).double() + 0.5 * (difference == 0).double()
    return Comparison(
        before=interval(before, seed=seed),
        after=interval(after, seed=seed),
        difference=interval(difference, seed=seed),
        win_rate=float(wins.mean()),
        std_before=float(before.std(correction=0)),
        num_prompts=len(before),
    )


def interval(values: Tensor, *, seed: int = 0) -> Interval:
    """Values (n,) -> their mean and its bootstrap interval."""
    generator = torch.Generator().manual_seed(seed)
    n = len(values)
    means = torch.cat(  # in parts, so that no (10 000, n) table is held
        [values[torch.randint(n, (500, n), generator=generator)].mean(1) for _ in range(NUM_RESAMPLES // 500)]
    )
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return Interval(mean=float(values.mean()), low=low, high=high)
