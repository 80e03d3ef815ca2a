"""What is asked, and what was answered: ballots of pictures for one prompt, and a file of votes that outlives a crash.

votes.jsonl (votes-NAME.jsonl of a voter with a name) holds a line a vote, {ballot, how, prompt, images, shown, choice},
or {ballot, undone: true} where the last one was taken back. A line is flushed to the disk before the page is told so; a
last line that a crash cut short does not count. `shown` is the order in which the images stood, drawn by (seed, ballot,
voter) so that no image has a place of its own; `choice` names images by their number in `images`, whatever place they
had:

    best     the best one's number                         rank    all numbers, the best one first
    thumbs   1, 0 or null for each image                   null    skipped
"""

import hashlib
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch

from align.errors import UserError
from align.files.texts import Unreadable, json_lines, read_text
from samplers import generator

FILE_NAME = "votes.jsonl"
How = Literal["best", "rank", "thumbs"]
MOST = 8
EXAMPLE = '{"ballot": "...", "choice": 0}'


class Ballot(NamedTuple):
    """One question."""

    key: str
    prompt: str
    images: tuple[str, ...]
    shown: tuple[int, ...]
    """Number of the image at each place."""


class Vote(NamedTuple):
    """An answer, in numbers of the ballot's images; None where it was skipped."""

    how: str
    prompt: str
    images: tuple[str, ...]
    choice: Any


def ballots(
    rows: Sequence[tuple[str, str]], *, how: How, most: int, seed: int, voter: str | None = None
) -> list[Ballot]:
    """Of (image, prompt) rows: each prompt's images, in as few and as equal ballots of at most `most` as they fit, the
    images of several folders dealt in turn, so that what two folders drew stands side by side. A prompt with one image
    has nothing to compare and no ballot, but with thumbs. Each voter is shown the same ballots in places of their
    own."""
    by_prompt: dict[str, dict[str, list[str]]] = {}
    for image, prompt in rows:
        by_prompt.setdefault(prompt, {}).setdefault(str(Path(image).parent), []).append(image)
    made = []
    for prompt, folders in by_prompt.items():
        turns = itertools.zip_longest(*folders.values())
        images = [image for turn in turns for image in turn if image is not None]
        number = -(-len(images) // most)
        for part in range(number):
            chosen = tuple(images[part * len(images) // number : (part + 1) * len(images) // number])
            if len(chosen) > 1 or how == "thumbs":
                key = hashlib.blake2b(json.dumps([how, prompt, chosen]).encode(), digest_size=8).hexdigest()
                order = torch.randperm(len(chosen), generator=generator(seed, f"shown/{key}{voter or ''}", 0)).tolist()
                made.append(Ballot(key, prompt, chosen, tuple(order)))
    return made


def unshuffled(ballot: Ballot, how: How, said: Any) -> Any:
    """A choice by places -> by images; ValueError where it is none."""
    n = len(ballot.shown)
    if said is None:
        return None
    if how == "best":
        if type(said) is not int or not 0 <= said < n:
            raise ValueError
        return ballot.shown[said]
    if not isinstance(said, list) or len(said) != n:
        raise ValueError
    if how == "rank":
        if any(type(place) is not int for place in said) or sorted(said) != list(range(n)):
            raise ValueError
        return [ballot.shown[place] for place in said]
    if any(thumb is not None and (type(thumb) is not int or thumb not in (0, 1)) for thumb in said):
        raise ValueError
    thumbs: list[int | None] = [None] * n
    for place, thumb in enumerate(said):
        thumbs[ballot.shown[place]] = thumb
    return thumbs


def _kept(record: Mapping[str, Any]) -> Vote:
    """The vote that a line holds; KeyError, TypeError or ValueError where it is none."""
    how, prompt, images = record["how"], record["prompt"], tuple(record["images"])
    if how not in get_args(How) or not all(isinstance(text, str) for text in (prompt, *images)):
        raise ValueError
    as_they_lie = Ballot(record["ballot"], prompt, images, tuple(range(len(images))))
    return Vote(how, prompt, images, unshuffled(as_they_lie, how, record["choice"]))


class Votes:
    """The file of votes in `folder`, and which ballots are still open."""

    def __init__(self, folder: Path, asked: Sequence[Ballot], how: How, voter: str | None = None):
        self.file, self.asked = folder / (FILE_NAME if voter is None else f"votes-{voter}.jsonl"), list(asked)
        self.how: How = how
        self.given: dict[str, Vote] = {}
        self._read()

    def _read(self) -> None:
        if not self.file.exists():
            return
        try:
            text = read_text(self.file)
            whole, _, rest = text.rpartition("\n")
            if rest:  # a crash cut it short: the next line is not to be glued to it
                with self.file.open("r+b") as file:
                    file.truncate(len(f"{whole}\n".encode()) if whole else 0)
            for number, record in json_lines(whole, str(self.file), EXAMPLE):
                self._apply(record, number)
        except Unreadable as error:
            raise UserError(f"{error} Repair it, or vote into another folder.") from None

    def _apply(self, record: Any, number: int) -> None:
        try:
            if record.get("undone"):
                self.given.pop(record["ballot"], None)
            else:
                self.given[record["ballot"]] = _kept(record)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise UserError(f"{self.file}: line {number} is no vote. Repair it, or vote into another folder.") from None

    def open(self) -> Ballot | None:
        """The next ballot without a vote."""
        return next((ballot for ballot in self.asked if ballot.key not in self.given), None)

    def last(self) -> Ballot | None:
        """The ballot that was answered last, of those that are asked."""
        known = {ballot.key: ballot for ballot in self.asked}
        return next((known[key] for key in reversed(self.given) if key in known), None)

    def done(self) -> int:
        """How many of those that are asked have a vote."""
        return sum(ballot.key in self.given for ballot in self.asked)

    def vote(self, ballot: Ballot, said: Any) -> None:
        """Takes a choice by places; on the disk when this returns. ValueError where it is none."""
        choice = unshuffled(ballot, self.how, said)
        record = {"ballot": ballot.key, "how": self.how, "prompt": ballot.prompt, "images": list(ballot.images)}
        self._append({**record, "shown": list(ballot.shown), "choice": choice})
        self.given.pop(ballot.key, None)
        self.given[ballot.key] = Vote(self.how, ballot.prompt, ballot.images, choice)

    def undo(self) -> Ballot | None:
        """Takes the last vote back; -> its ballot."""
        ballot = self.last()
        if ballot is not None:
            self._append({"ballot": ballot.key, "undone": True})
            del self.given[ballot.key]
        return ballot

    def _append(self, record: Mapping[str, Any]) -> None:
        before = self.file.stat().st_size if self.file.exists() else 0
        with self.file.open("ab", buffering=0) as file:
            try:
                file.write(f"{json.dumps(record)}\n".encode())
                os.fsync(file.fileno())
            except OSError:  # a full disk: half a line would swallow the next one
                file.truncate(before)
                raise


def everyone(folder: Path, how: How) -> dict[str, Votes]:
    """{voter: votes} of all who have voted into `folder`; who gave no name is ""."""
    names = {path: path.stem.removeprefix("votes").removeprefix("-") for path in sorted(folder.glob("votes*.jsonl"))}
    return {name: Votes(folder, (), how, name or None) for name in names.values()}
