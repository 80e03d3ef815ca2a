"""Paired statistics of many scores at once: per prompt first, over its images; then over prompts, by the intervals of
align/figures/statistics.py. Rows that are `asked` the same are of one prompt (align/figures/repeats.py)."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from align.figures.repeats import Asked
from align.figures.statistics import Comparison, Interval, chance, distinct, interval, paired, rate


class Gain(Comparison):
    """A comparison over prompts with several images each; win_rate is taken image by image."""

    wins: Interval
    """The win rate with its interval."""


def gains(before: Mapping[str, Tensor], after: Mapping[str, Tensor], asked: Asked = None) -> dict[str, Gain]:
    """{label: scores (P, K)} of the same P prompts and K seeds -> {label: what changed}."""
    result = {}
    for label in after:
        old, new = before[label].double(), after[label].double()
        wins = (new > old).double() + 0.5 * (new == old).double()
        differences = (new - old).mean(1)
        of_wins = rate(wins, asked) if bool((new != old).any()) else Interval(mean=0.5, low=0.5, high=0.5)
        result[label] = Gain(
            before=_mean(old, asked),
            after=_mean(new, asked),
            difference=paired(differences, asked),
            win_rate=of_wins.mean,
            ties=float((new == old).double().mean()),
            wins=of_wins,
            std_before=float(old.std(correction=0)),
            num_prompts=len(old),
            num_distinct=distinct(asked, len(old)),
            p=chance(differences, asked),
        )
    return result


def means(scores: Mapping[str, Tensor], asked: Asked = None) -> dict[str, Interval]:
    """{label: scores (P, K)} -> {label: the mean over prompts}."""
    return {label: _mean(values.double(), asked) for label, values in scores.items()}


def _mean(values: Tensor, asked: Asked) -> Interval:
    """Of scores (P, K); those that say 0 or 1 are rates."""
    binary = bool(((values == 0) | (values == 1)).all())
    return rate(values, asked) if binary else interval(values.mean(1), asked)


def intervals(values: Tensor, asked: Asked = None) -> list[Interval]:
    """Distances (P, C) of P prompts -> the interval of each column's mean."""
    return [paired(column, asked) for column in values.double().unbind(1)]


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Of points (cost, gain) those that no other beats: none has a higher gain at the same or a lower cost."""
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    best, kept = float("-inf"), []
    for i in order:
        if points[i][1] > best:
            best = points[i][1]
            kept.append(i)
    return kept
