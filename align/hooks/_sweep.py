"""Which strength of an adapter is recommended, and whether it is better than the base: by intervals that hold.

d_i = the score of prompt i at strength s less that at strength 1, on prompts that have chosen nothing. Another strength
than 1 is recommended where

    mean(d) - t(1 - 0.05/m, n - 1) std(d)/sqrt(n) > 0          m strengths beside 1, n prompts

Student's quantile holds at few prompts, and the division by m at many strengths (Bonferroni): where strength changes
nothing, another than 1 is recommended in at most 5 % of runs. The gain over the base has a two-sided 95 % interval of
the same kind, divided by m too where another strength than 1 was picked by it.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

from align.hooks._measured import Measurement

LEVEL = 0.05
FEWEST = 4
"""Prompts below which no interval is taken for one."""


def differences(a: Measurement, b: Measurement) -> list[float]:
    """Of the scores of each prompt."""
    return [x - y for x, y in zip(a.each, b.each, strict=True)]


def standard_error(a: Measurement, b: Measurement) -> float:
    """Of the difference of two scores, paired over prompts; 0 where there is one prompt."""
    found = differences(a, b)
    return stdev(found) / math.sqrt(len(found)) if len(found) > 1 else 0.0


def margin(values: Sequence[float], tail: float) -> float:
    """Half the width of Student's interval of a mean, with the probability `tail` on a side."""
    from scipy.stats import t

    return float(t.ppf(1 - tail, len(values) - 1)) * stdev(values) / math.sqrt(len(values))


def recommended(sweep: Mapping[float, Measurement], base: Measurement | None = None) -> float:
    """1, or the best of the strengths that are surely better; where 1 raises an alarm, the nearest that raises none.
    More than 1 only where that is surely better than the base too, if there is one: else there is nothing to have more
    of."""
    sound = {strength: seen for strength, seen in sweep.items() if not seen.alarms}
    if not sound or 1.0 not in sweep:
        return 1.0
    if 1.0 not in sound:
        return min(sound, key=lambda strength: (abs(strength - 1), strength))
    others = len(sweep) - 1
    better = {s for s, seen in sound.items() if s != 1 and _surely(seen, sound[1.0], others) > 0}
    if base is not None:
        better -= {s for s in better if s > 1 and not (gain(sound[s], base, others) or {"better": False})["better"]}
    return max(sorted(better), key=lambda strength: sound[strength].score) if better else 1.0


def gain(chosen: Measurement, base: Measurement, picked_among: int = 1) -> dict[str, float | bool] | None:
    """The score over the base's with its interval, and whether it is surely above 0; None with too few prompts."""
    found = differences(chosen, base)
    if len(found) < FEWEST:
        return None
    mean, width = fmean(found), margin(found, LEVEL / 2 / picked_among)
    return {"mean": mean, "low": mean - width, "high": mean + width, "better": mean - width > 0}


def _surely(seen: Measurement, one: Measurement, others: int) -> float:
    """The least that `seen` is better than `one` by, 0 or below where that is not sure."""
    found = differences(seen, one)
    return fmean(found) - margin(found, LEVEL / others) if len(found) >= FEWEST else 0.0
