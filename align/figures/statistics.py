"""Before and after on the same prompts and seeds: means, win rate, and how sure they are.

Intervals are of 95 % and hold that at every number of prompts (tests/align/figures/test_coverage.py). Means: Student's
t over prompts. Rates, and scores that say 0 or 1: exact (Clopper & Pearson 1934) below 24 trials, Wilson's (1927) from
there, which are narrower. Differences of two such scores: Agresti & Min's (2005). Several seeds: both seeds and prompts
are drawn (Cochran & Cox 1957). Below 4 prompts there is none. A difference is taken image by image first: what the two
share (a hard prompt, an unlucky noise) cancels. Means are over images; where several are of one prompt, intervals and p
are over the distinct prompts (align/figures/repeats.py).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from align.figures.repeats import Asked, Repeats, repeats, told

LEAST = 4
"""Prompts below which no interval is given."""
LARGE = 24  # trials from which Wilson's interval covers what it says
ALPHA = 0.05


class Interval(BaseModel):
    """A mean over prompts and its 95 % interval; low and high are null where there are too few prompts for one."""

    model_config = ConfigDict(frozen=True)

    mean: float
    low: float | None
    high: float | None

    @property
    def edges(self) -> tuple[float, float]:
        """low and high, of no width where they are not known: for drawing."""
        return (self.mean, self.mean) if self.low is None or self.high is None else (self.low, self.high)

    def within(self, form: str = ".4f", between: str = ", ") -> str:
        """The two edges as text."""
        if self.low is None or self.high is None:
            return f"too few for an interval, below {LEAST}"
        return f"{self.low:{form}}{between}{self.high:{form}}"

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.within()}]"


class Comparison(BaseModel):
    """One score before (the reference) and after (the trained model), image by image on the same prompts and seeds."""

    model_config = ConfigDict(frozen=True)

    before: Interval
    after: Interval
    difference: Interval
    """After - before, paired."""
    win_rate: float
    """Share of images on which after is higher; ties count half."""
    ties: float | None = None
    """Share of images on which both are the same; null of runs that have not counted them."""
    std_before: float
    """Standard deviation of the score over the reference's images: the scale of a difference."""
    num_prompts: int
    """Rows: a prompt that stands there twice counts twice."""
    num_distinct: int | None = None
    """Distinct prompts among them, over which intervals and p are; null of runs that have not counted them."""
    p: float | None = None
    """How often a difference at least as large comes about by chance where there is none; null below 4 prompts."""

    def asked(self) -> str:
        """How many prompts, to stand before the word prompts: "256", or "1024 images of 383" where some repeat."""
        return told(self.num_prompts, self.num_distinct)

    def shares(self, form: str = "{:.0f}, {:.0f} %") -> str:
        """On how many after is higher, and on how many it is lower, in per cent."""
        if self.ties is None:
            return f"{100 * self.win_rate:.0f} %"
        wins = self.win_rate - self.ties / 2
        return form.format(100 * wins, abs(100 * (1 - wins - self.ties)))


def better(found: Comparison) -> str:
    """Such as "better on 63 %, worse on 30 %"; where all are the same, that."""
    return "the same on all" if found.ties == 1 else f"better on {found.shares('{:.0f} %, worse on {:.0f} %')}"


def compare(before: Tensor, after: Tensor, asked: Asked = None) -> Comparison:
    """Scores (n,) of the same n prompts in the same order -> their comparison; rows that are `asked` the same are of
    one prompt."""
    before, after = before.double().cpu(), after.double().cpu()
    difference = after - before
    wins = (difference > 0).double() + 0.5 * (difference == 0).double()
    return Comparison(
        before=interval(before, asked),
        after=interval(after, asked),
        difference=paired(difference, asked),
        win_rate=float(wins.mean()),
        ties=float((difference == 0).double().mean()),
        std_before=float(before.std(correction=0)),
        num_prompts=len(before),
        num_distinct=distinct(asked, len(before)),
        p=chance(difference, asked),
    )


def distinct(asked: Asked, number: int) -> int:
    """How many prompts `number` rows have."""
    return number if asked is None else len(set(asked))


def paired(differences: Tensor, asked: Asked = None) -> Interval:
    """Differences (n,) image by image, or distances -> their mean and its interval; none at all is exactly none."""
    differences = differences.double().cpu()
    answers = torch.tensor([-1.0, 0.0, 1.0], dtype=differences.dtype)
    shared = repeats(asked, len(differences))
    enough = len(differences if shared is None else shared) >= LEAST
    if enough and differences.any() and bool(torch.isin(differences, answers).all()):
        return _of_two_rates(differences, shared)
    return _mean(differences, shared)


def interval(values: Tensor, asked: Asked = None) -> Interval:
    """Scores (n,) -> their mean and its interval; those that say 0 or 1 are a rate."""
    values = values.double().cpu()
    if bool(((values == 0) | (values == 1)).all()):
        return rate(values[:, None], asked)
    return _mean(values, repeats(asked, len(values)))


def _mean(values: Tensor, shared: Repeats | None) -> Interval:
    mean = float(values.mean())
    if len(values if shared is None else shared) < LEAST:
        return Interval(mean=mean, low=None, high=None)
    if shared is not None:
        half = _t(shared.freedom) * math.sqrt(shared.variance(values))
        return Interval(mean=mean, low=mean - half, high=mean + half)
    from scipy.stats import ttest_1samp

    low, high = ttest_1samp(values.numpy(), 0.0).confidence_interval(1 - ALPHA) if values.std() > 0 else (mean, mean)
    return Interval(mean=mean, low=float(low), high=float(high))


def rate(wins: Tensor, asked: Asked = None) -> Interval:
    """Shares (P, K) of P prompts with K images each, in [0, 1] -> the mean rate. Images of one prompt are alike: they
    count as fewer than P K trials, by how much their prompts differ (Kish's effective number)."""
    wins = wins.double().cpu()
    mean, shared = float(wins.mean()), repeats(asked, len(wins))
    if len(wins if shared is None else shared) < LEAST:
        return Interval(mean=mean, low=None, high=None)
    low, high = _binomial(mean, _trials(wins, mean * (1 - mean), shared))
    return Interval(mean=mean, low=low, high=high)


def _trials(values: Tensor, variance: float, shared: Repeats | None) -> float:
    """As many independent answers, each of `variance`, say as much as values (P, K) of P rows with K images each: at
    least the (effective) prompts, at most all images."""
    prompts, images = values.shape
    means = values.mean(1)
    if shared is None:
        least, freedom, between = float(prompts), prompts - 1.0, float(means.var(correction=0)) / prompts
    else:
        least, freedom = shared.effective, shared.freedom
        between = shared.variance(means) * (1 - 1 / least)
    trials = variance / between if between > 0 else least
    if images > 1 or shared is not None:  # it is itself an estimate, of few prompts unsure (Korn & Graubard 1998)
        trials *= (_z() / _t(freedom)) ** 2
    return min(max(trials, least), prompts * images)


def over_seeds(values: Tensor) -> Interval:
    """Values (S, P) of S seeds on the same P prompts -> the mean, for new seeds and new prompts alike."""
    values = values.double().cpu()
    seeds, prompts = values.shape
    if seeds == 1:
        return paired(values[0])
    mean = float(values.mean())
    if prompts < LEAST:
        return Interval(mean=mean, low=None, high=None)
    of_seeds, of_prompts = values.mean(1), values.mean(0)
    rest = values - of_seeds[:, None] - of_prompts + mean
    noise = float(rest.square().sum()) / ((seeds - 1) * (prompts - 1))
    # A variance for each of the two, each at its own t (Cochran & Cox 1957): three seeds say little of seeds.
    of_seed = max(prompts * float(of_seeds.var()) - noise, 0.0) / values.numel()
    of_prompt = seeds * float(of_prompts.var()) / values.numel()
    half = math.sqrt(_t(seeds - 1) ** 2 * of_seed + _t(prompts - 1) ** 2 * of_prompt)
    return Interval(mean=mean, low=mean - half, high=mean + half)


def chance(differences: Tensor, asked: Asked = None) -> float | None:
    """The two-sided p of paired differences (n,): Student's, and never below what turning signs could give, 2^(1-m) of
    m prompts whose sum is not 0 (a few equal ones have no spread, and prove little)."""
    differences = differences.double().cpu()
    shared = repeats(asked, len(differences))
    totals = differences if shared is None else shared.totals(differences)
    if len(totals) < LEAST:
        return None
    moved = int(totals.count_nonzero())
    return 1.0 if moved == 0 else max(_by_t(differences, shared), 2.0 ** (1 - moved))


def _by_t(differences: Tensor, shared: Repeats | None) -> float:
    from scipy.stats import t, ttest_1samp

    if shared is None:
        tested: Any = ttest_1samp(differences.numpy(), 0.0) if float(differences.std()) > 0 else None
        return float(tested.pvalue) if tested is not None else 0.0
    error = math.sqrt(shared.variance(differences))
    return 2 * float(t.sf(abs(float(differences.mean())) / error, shared.freedom)) if error > 0 else 0.0


def survivors(chances: Sequence[float | None]) -> float:
    """The largest p that still counts among all that were looked at, so that in 95 of 100 looks at nothing none does
    (Holm 1979); below 0 where none counts."""
    known = sorted(p for p in chances if p is not None)
    limit = -1.0
    for place, p in enumerate(known):
        if p > ALPHA / (len(known) - place):
            break
        limit = p
    return limit


def _t(freedom: float) -> float:
    from scipy.stats import t

    return float(t.ppf(1 - ALPHA / 2, freedom))


def _z() -> float:
    from scipy.stats import norm

    return float(norm.ppf(1 - ALPHA / 2))


def _binomial(mean: float, trials: float) -> tuple[float, float]:
    """A rate's interval at a number of trials, which need not be whole."""
    from scipy.stats import beta

    hits = mean * trials
    if trials < LARGE:
        low = float(beta.ppf(ALPHA / 2, hits, trials - hits + 1)) if hits > 0 else 0.0
        high = float(beta.ppf(1 - ALPHA / 2, hits + 1, trials - hits)) if hits < trials else 1.0
        return low, high
    z = _z()
    middle = (mean + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(mean * (1 - mean) / trials + z * z / (4 * trials * trials))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _of_two_rates(differences: Tensor, shared: Repeats | None) -> Interval:
    """Of paired answers 0 or 1: half an observation is added to each of the four ways in which two can fall."""
    count = len(differences)
    trials = count if shared is None else _trials(differences[:, None], float(differences.var(correction=0)), shared)
    better, worse = (float(side.sum()) * (trials / count) + 0.5 for side in (differences > 0, differences < 0))
    number = trials + 2
    middle = (better - worse) / number
    half = _z() * math.sqrt(better + worse - (better - worse) ** 2 / number) / number
    return Interval(mean=float(differences.mean()), low=max(middle - half, -1.0), high=min(middle + half, 1.0))
