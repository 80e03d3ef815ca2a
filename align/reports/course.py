"""Whether the trained reward had fallen back at the update that a run's result is of.

The rewards of single updates are means over other prompts each, so means of windows of updates are compared: the last
with the best one. A fall is told where it is above SURE standard errors and more than half of what the best window had
gained over the first.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

KEY, SURE = "reward/total", 5.0
WINDOWS, FEWEST = 12, 8  # of a run; updates of the shortest


@dataclass(frozen=True)
class Fall:
    """From the mean reward of the best window of updates, first and last included, to that of the last window."""

    best: float
    high: tuple[int, int]
    end: float
    low: tuple[int, int]

    def __str__(self) -> str:
        return (
            f"the trained reward fell back from {self.best:.4g} in updates {self.high[0]} to {self.high[1]} to "
            f"{self.end:.4g} in updates {self.low[0]} to {self.low[1]}. Train shorter or with a lower optim.lr, or let "
            "hooks.guard keep the adapter of before the fall"
        )


def fall(records: Sequence[Mapping[str, Any]], end: int, key: str = KEY) -> Fall | None:
    """The fall that the records up to update `end` end in; None where there is none, or too few to tell."""
    told = [(int(r["step"]), float(r[key])) for r in records if isinstance(r.get(key), int | float)]
    told = [point for point in told if point[0] <= end]
    size = max(FEWEST, len(told) // WINDOWS)
    windows = [told[i - size : i] for i in range(len(told), size - 1, -size)][::-1]
    if len(windows) < 2:
        return None
    means = [statistics.fmean(value for _, value in window) for window in windows]
    best = max(range(len(means)), key=means.__getitem__)
    errors = [statistics.variance(value for _, value in windows[i]) / size for i in (best, -1)]
    lost, gained = means[best] - means[-1], means[best] - means[0]
    if lost <= max(SURE * math.sqrt(sum(errors)), gained / 2):
        return None
    high, low = ((window[0][0], window[-1][0]) for window in (windows[best], windows[-1]))
    return Fall(means[best], high, means[-1], low)
