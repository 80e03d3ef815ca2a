"""Preference pairs as they lie on disk: which image is preferred for which prompt, without opening the images.

folder     pairs.jsonl, one {"prompt": ..., "winner": PATH, "loser": PATH, "tie": false} a line, paths relative to it
pickapic   *.parquet with caption, jpg_0, jpg_1 (bytes, or {bytes, path} as `datasets` saves them), label_0, label_1 (1,
           0, or 0.5 for a tie): Pick-a-Pic v2, Kirstain et al., arXiv 2305.01569; the shards of the split train where
           splits are named
hpdv2      train.json, a list of {prompt, file_path: [A, B], human_preference: [1, 0]}, images in train/: HPDv2,
           Wu et al., arXiv 2306.09341

A row without a judgement (a label that is null or NaN, has_label false) or without a prompt is no pair: it is left out
and counted.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from align.data._pictures import Picture, parquet, shards
from align.errors import UserError
from align.files.texts import Unreadable, json_lines, json_value, read_text

FILE_NAME = "pairs.jsonl"
Layout = Literal["auto", "folder", "pickapic", "hpdv2"]
EXAMPLE = '{"prompt": "...", "winner": "a.png", "loser": "b.png"}'


class Pair(NamedTuple):
    """One comparison; in a tie the order of the two says nothing."""

    prompt: str
    winner: Picture
    loser: Picture
    tie: bool = False

    @property
    def pictures(self) -> tuple[Picture, ...]:
        return self.winner, self.loser


Found = Iterator[Pair | str]
"""Pairs, and in place of a row that is none the reason."""


def read_pairs(path: Path, layout: Layout = "auto", left_out: Counter[str] | None = None) -> list[Pair]:
    """All pairs at `path`, in their order on disk; UserError says which line of which file is wrong. Rows that are no
    pairs are counted in `left_out` by the reason."""
    chosen = detect(path) if layout == "auto" else layout
    readers = {"folder": _folder, "pickapic": _pickapic, "hpdv2": _hpdv2}
    counts: Counter[str] = Counter() if left_out is None else left_out
    pairs: list[Pair] = []
    try:
        for found in readers[chosen](path):
            if isinstance(found, Pair):
                pairs.append(found)
            else:
                counts[found] += 1
    except Unreadable as error:
        raise UserError(f"data.pairs: {error}") from None
    if not pairs:
        told = ", ".join(f"{number} {why}" for why, number in counts.items())
        raise UserError(
            f"data.pairs={path}: there is no pair in it{f' ({told})' if told else ''}. Give a folder that holds some."
        )
    return pairs


def detect(path: Path) -> str:
    """Which of the layouts `path` has."""
    if (path / FILE_NAME).is_file() or path.suffix == ".jsonl":
        return "folder"
    if path.suffix == ".parquet" or (path.is_dir() and any(path.rglob("*.parquet"))):
        return "pickapic"
    if (path / "train.json").is_file() or path.suffix == ".json":
        return "hpdv2"
    if path.is_dir() and any(path.rglob("*.arrow")):
        raise UserError(
            f"data.pairs={path}: a dataset that save_to_disk wrote (.arrow). Write it as parquet: "
            "load_from_disk(FOLDER).to_parquet('train-0.parquet')."
        )
    raise UserError(
        f"data.pairs={path}: it holds no {FILE_NAME}, no .parquet file (Pick-a-Pic) and no train.json (HPDv2). Check "
        "the path, make pairs with `align pairs`, or write a pairs.jsonl of {prompt, winner, loser}."
    )


def _folder(path: Path) -> Found:
    file = path if path.suffix == ".jsonl" else path / FILE_NAME
    for number, record in json_lines(read_text(file), str(file), EXAMPLE):
        texts = [record.get(key) for key in ("prompt", "winner", "loser")] if isinstance(record, dict) else [None]
        if not all(isinstance(text, str) and text for text in texts):
            raise UserError(f"{file}: line {number} needs text under prompt, winner and loser.")
        tie = record.get("tie")
        if not isinstance(tie, bool | None):
            raise UserError(f"{file}: line {number} says tie: {tie!r}. Write true or false, or leave it out.")
        prompt, winner, loser = map(str, texts)
        yield Pair(prompt, Picture(file.parent / winner), Picture(file.parent / loser), bool(tie))


def _hpdv2(path: Path) -> Found:
    file = path if path.suffix == ".json" else path / "train.json"
    records = json_value(read_text(file), str(file))
    if not isinstance(records, list):
        raise UserError(f"{file}: is no list of comparisons.")
    for number, record in enumerate(records):
        told = record if isinstance(record, dict) else {}
        names, liked = (told.get("file_path") or told.get("image_path")), told.get("human_preference")
        where = f"{file}: entry {number}"
        if not _two(names, str) or not _two(liked) or not isinstance(told.get("prompt"), str | None):
            raise UserError(f"{where} needs a prompt, two file_path and two human_preference.")
        assert isinstance(names, list) and isinstance(liked, list)
        first, second = (Picture(_within(file.parent, name)) for name in names)
        yield _judged(told.get("prompt"), (first, second), liked, where)


def _two(value: Any, kind: type = object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(each, kind) for each in value)


def _within(folder: Path, name: str) -> Path:
    """HPDv2 names its training images without the folder train/ that they are unpacked into."""
    return folder / "train" / name if not (folder / name).exists() else folder / name


def _judged(prompt: Any, pictures: tuple[Picture, Picture], labels: Any, where: str) -> Pair | str:
    """The pair of two labels, the larger preferred; a reason where a label or the prompt is missing."""
    numbers = [_number(label, where) for label in labels]
    if None in numbers:
        return "not judged"
    if not isinstance(prompt, str) or not prompt.strip():
        return "without a prompt"
    first, second = numbers[0] or 0.0, numbers[1] or 0.0
    winner, loser = pictures if first >= second else pictures[::-1]
    return Pair(prompt, winner, loser, tie=first == second)


def _number(label: Any, where: str) -> float | None:
    """A label as a number; None for a missing one, which is null or NaN."""
    if label is None or label == "":
        return None
    try:
        number = float(label)
    except (TypeError, ValueError):
        raise UserError(f"{where}: the label {label!r} is no number.") from None
    return None if math.isnan(number) else number


def _pickapic(path: Path) -> Found:
    for file in shards(path):
        table = parquet(file)
        names = set(table.schema_arrow.names)
        wanted = ["caption", "label_0", "label_1"]
        if missing := sorted({*wanted, "jpg_0", "jpg_1"} - names):
            raise UserError(f"{file}: it has no column {', '.join(missing)}: this is not Pick-a-Pic's layout.")
        row = 0
        for batch in table.iter_batches(columns=[*wanted, *({"has_label"} & names)]):
            for record in batch.to_pylist():
                pictures = Picture(file, row, "jpg_0"), Picture(file, row, "jpg_1")
                yield _row(record, pictures, f"{file}: row {row}")
                row += 1


def _row(record: Mapping[str, Any], pictures: tuple[Picture, Picture], where: str) -> Pair | str:
    has_label = _number(record.get("has_label"), where)
    if has_label == 0:
        return "not judged"
    return _judged(record["caption"], pictures, (record["label_0"], record["label_1"]), where)
