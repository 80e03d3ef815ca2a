"""Blind A/B choices over an evaluation's images: each arm against the baseline, two pictures of one prompt and seed.

The first image of each prompt is asked about. All arms' questions stand in one random order and the two pictures of
each in another, so that nobody who chooses knows which arm is asked about, nor which picture is whose.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from align.data.prompts import words
from align.evaluation.arms import Arm
from align.evaluation.benchmarks import Item
from align.evaluation.files import Folder
from align.figures.statistics import Interval, rate
from align.files.output import write
from align.vote.ballots import Ballot, Vote
from rewards._numerals import counted
from samplers import generator

FOLDER, FILE_NAME = "votes", "votes.json"


class Rate(NamedTuple):
    """How often an arm's picture was chosen over the baseline's."""

    label: str
    chosen: int
    asked: int
    """Choices that were made; those that were skipped do not count."""
    skipped: int
    share: Interval | None
    """With its 95 % interval over prompts; None before the first choice."""


def asked(
    folder: Folder, baseline: Arm, arms: Sequence[Arm], items: Sequence[Item], seed: int
) -> dict[str, list[Ballot]]:
    """{arm's label: its ballots, by prompt}; a ballot's images are (the baseline's, the arm's). Its key goes by what
    the pictures show, so that a vote does not speak of pictures that were drawn anew."""
    found: dict[str, list[Ballot]] = {}
    for arm in arms:
        for index, item in enumerate(items):
            paths = [folder.image(one, index, 0).absolute() for one in (baseline, arm)]
            told = [arm.label, item.prompt, *(hashlib.blake2b(path.read_bytes()).hexdigest() for path in paths)]
            key = hashlib.blake2b(json.dumps(told).encode(), digest_size=8).hexdigest()
            order = torch.randperm(2, generator=generator(seed, f"shown/{key}", 0)).tolist()
            ballot = Ballot(key, item.prompt, tuple(map(str, paths)), tuple(order))
            found.setdefault(arm.label, []).append(ballot)
    return found


def shuffled(ballots: Mapping[str, Sequence[Ballot]], seed: int) -> list[Ballot]:
    """All arms' ballots in one random order; pictures that are the same are no question."""
    every = [ballot for some in ballots.values() for ballot in some if not _same(*ballot.images)]
    order = torch.randperm(len(every), generator=generator(seed, "blind", 0)).tolist()
    return [every[i] for i in order]


def _same(one: str, other: str) -> bool:
    return Path(one).read_bytes() == Path(other).read_bytes()


def rates(ballots: Mapping[str, Sequence[Ballot]], given: Mapping[str, Vote]) -> list[Rate]:
    """What was chosen, by arm."""
    found = []
    for label, some in ballots.items():
        choices = [(words(ballot.prompt), given[ballot.key].choice) for ballot in some if ballot.key in given]
        prompts, made = [p for p, choice in choices if choice is not None], [c for _, c in choices if c is not None]
        share = rate(torch.tensor(made, dtype=torch.float64)[:, None], prompts) if made else None
        found.append(Rate(label, sum(made), len(made), len(choices) - len(made), share))
    return found


def lines(found: Sequence[Rate], baseline: str) -> list[str]:
    """For people, one an arm."""
    said = []
    for one in found:
        if one.share is None:
            said.append(f"{one.label}: no choices yet")
            continue
        within = "" if one.share.low is None else f" [{100 * one.share.low:.0f}, {100 * (one.share.high or 0):.0f}]"
        skipped = f", {one.skipped} skipped" if one.skipped else ""
        said.append(
            f"{one.label}: chosen over {baseline} {one.chosen} of {counted(one.asked, 'time')}, "
            f"{100 * one.share.mean:.0f} %{within}{skipped}"
        )
    return said


def keep(found: Sequence[Rate], baseline: str, path: Path) -> None:
    """Writes them as JSON."""
    rows = [{**one._asdict(), "share": None if one.share is None else one.share.model_dump()} for one in found]
    write(path / FILE_NAME, json.dumps({"baseline": baseline, "arms": rows}, indent=1) + "\n", "--output")
