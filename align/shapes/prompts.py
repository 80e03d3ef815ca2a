"""The three prompt sets: train, select (what guards and sweeps may look at), report (read once, after every choice).

They are disjoint in combinations: captions that ask for the same thing in another order fall into the same set.
"""

import hashlib
from collections import defaultdict

import numpy as np

from align.shapes.captions import SKILLS, Requirement, requirements, say

SPLITS = {"train": 0.5, "select": 0.2, "report": 0.3}  # share of each skill's combinations


def _groups(skill: str) -> dict[str, list[Requirement]]:
    groups: dict[str, list[Requirement]] = defaultdict(list)
    for r in requirements(skill):
        groups[r.key].append(r)
    return groups


def combinations(split: str, skill: str) -> list[list[Requirement]]:
    """The combinations of a skill that belong to a set, each as its wordings, in an order without meaning."""
    if split not in SPLITS:
        raise ValueError(f"prompt set {split!r} is unknown. Choose one of {', '.join(SPLITS)}.")
    groups = _groups(skill)
    keys = sorted(groups, key=lambda k: hashlib.sha256(k.encode()).digest())
    edges = np.round(np.cumsum([0.0, *SPLITS.values()]) * len(keys)).astype(int)
    i = list(SPLITS).index(split)
    return [groups[k] for k in keys[edges[i] : edges[i + 1]]]


def prompts(split: str, count: int | None = None, seed: int = 0) -> list[str]:
    """Captions of a set, the six skills in turn, so that any length holds equal shares (to one).

    Args:
        split: "train", "select" or "report".
        count: how many; a skill with fewer captions repeats them. None: each caption of the set once.
        seed: decides the order only.

    Raises:
        ValueError: unknown set.
    """
    rng = np.random.default_rng([seed, *split.encode()])
    decks: list[list[str]] = []
    for skill in SKILLS:
        groups = combinations(split, skill)
        order = [groups[i] for i in rng.permutation(len(groups))]
        depth = max(map(len, order))
        decks.append([say(g[k % len(g)]) for k in range(depth) for g in order if k < len(g)])
    if count is None:
        return [caption for deck in decks for caption in deck]
    return [decks[i % len(decks)][(i // len(decks)) % len(decks[i % len(decks)])] for i in range(count)]
