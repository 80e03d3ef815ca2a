"""How far people who voted on the same pictures agree.

A unit is what can be judged alike or not: which of two pictures of a prompt is better, or whether a picture gets a
thumb up. Krippendorff's alpha for nominal data (Computing Krippendorff's Alpha-Reliability, 2011), over the units that
two or more judged:

    alpha = 1 - D_o/D_e,   D_o: share of unlike pairs of values within units,   D_e: that among all values

1 is agreement, 0 what chance would give. Which picture of two stands first is decided by a hash, so that neither order
is the usual answer.
"""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import NamedTuple

from align.vote.ballots import Vote
from align.vote.export import labels, pairs
from rewards._numerals import counted


class Agreement(NamedTuple):
    """Of some voters."""

    voters: int
    units: int
    """Judged by two of them or more."""
    share: float
    """How often two who judged the same judged it alike."""
    alpha: float | None
    """None where all values are the same: nothing tells agreement from habit."""

    def __str__(self) -> str:
        alpha = "" if self.alpha is None else f", Krippendorff's alpha {self.alpha:.2f}"
        common = counted(self.units, "judgement that they share")
        return f"{self.voters} voters: two agree on {self.share:.0%} of {common}{alpha}"


def agreement(voters: Mapping[str, Iterable[Vote]]) -> Agreement | None:
    """Of {name: votes}; None where no two judged the same."""
    values: dict[Hashable, list[int]] = {}
    for votes in voters.values():
        for unit, value in _judged(list(votes)):
            values.setdefault(unit, []).append(value)
    shared = [judged for judged in values.values() if len(judged) > 1]
    if not shared:
        return None
    alike = total = 0
    unlike_within = 0.0
    for judged in shared:
        m, counts = len(judged), Counter(judged)
        same = sum(n * (n - 1) for n in counts.values())
        alike, total = alike + same, total + m * (m - 1)
        unlike_within += (m * (m - 1) - same) / (m - 1)
    every = Counter(itertools.chain.from_iterable(shared))
    n = sum(every.values())
    unlike = n * n - sum(count**2 for count in every.values())
    alpha = 1 - unlike_within * (n - 1) / unlike if unlike else None
    return Agreement(len(voters), len(shared), alike / total, alpha)


def _judged(votes: list[Vote]) -> Iterator[tuple[Hashable, int]]:
    for row in pairs(votes):
        first, second = sorted((row["winner"], row["loser"]))
        if hashlib.blake2b(json.dumps([first, second]).encode(), digest_size=1).digest()[0] % 2:
            first, second = second, first
        yield (row["prompt"], first, second), int(row["winner"] == first)
    for row in labels(votes):
        yield (row["prompt"], row["image"]), row["label"]
