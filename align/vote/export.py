"""Votes as training data: pairs.jsonl of what was preferred, labels.jsonl of thumbs; paths relative to the folder."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from align.data._labels import FILE_NAME as LABELS
from align.data._pairs import FILE_NAME as PAIRS
from align.files.output import write
from align.vote.ballots import Vote


def pairs(votes: Iterable[Vote]) -> Iterator[dict[str, Any]]:
    """The best against each other image of its ballot; of a ranking every two of its images."""
    for vote in votes:
        if vote.choice is None:
            continue
        if vote.how == "best":
            order = [(vote.choice, other) for other in range(len(vote.images)) if other != vote.choice]
        elif vote.how == "rank":
            order = [(w, lost) for i, w in enumerate(vote.choice) for lost in vote.choice[i + 1 :]]
        else:
            continue
        for w, lost in order:
            yield {"prompt": vote.prompt, "winner": vote.images[w], "loser": vote.images[lost]}


def labels(votes: Iterable[Vote]) -> Iterator[dict[str, Any]]:
    """Each image that got a thumb."""
    for vote in votes:
        if vote.how == "thumbs" and vote.choice is not None:
            for image, thumb in zip(vote.images, vote.choice, strict=True):
                if thumb is not None:
                    yield {"image": image, "prompt": vote.prompt, "label": thumb}


def export(votes: Iterable[Vote], folder: Path) -> dict[Path, int]:
    """Writes what there is of both; {file: its rows}. A file that would be empty is removed: votes were taken back."""
    votes, written = list(votes), {}
    for name, records in ((PAIRS, pairs(votes)), (LABELS, labels(votes))):
        rows = [_relative(record, folder) for record in records]
        file = folder / name
        if rows:
            write(file, "".join(f"{json.dumps(row)}\n" for row in rows), "--output")
            written[file] = len(rows)
        elif file.exists():
            file.unlink()
    return written


def _relative(record: dict[str, Any], folder: Path) -> dict[str, Any]:
    paths = {key: os.path.relpath(record[key], folder) for key in ("winner", "loser", "image") if key in record}
    return record | {key: path.replace(os.sep, "/") for key, path in paths.items()}
