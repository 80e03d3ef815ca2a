"""Labelled pictures as they lie on disk: an image, the prompt it is for, and whether it is good, image files unopened.

table      labels.jsonl, .csv, .tsv or .parquet of columns image (a path relative to the table, or in parquet its
           bytes), prompt, and label: 1 or 0, true or false, up or down, good or bad, 1 or -1
pairs      any layout of preference pairs (align/data/_pairs.py): the winner is good and the loser bad

A row without a label or a prompt, and a pair without preference, is left out and counted. A label is a verdict: a
number in between says nothing without a threshold, which is refused.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from align.data._columns import called, needed
from align.data._pairs import FILE_NAME as PAIRS
from align.data._pairs import NAMES as PAIR_NAMES
from align.data._pairs import read_pairs
from align.data._pictures import Picture, parquet
from align.errors import UserError
from align.files.texts import TABLES, Unreadable, json_lines, read_text, table

FILE_NAME = "labels.jsonl"
KINDS = (".jsonl", *TABLES, ".parquet")
EXAMPLE = '{"image": "a.png", "prompt": "...", "label": 1}'
NAMES = {
    "image": ("image", "file", "file_name", "jpg"),
    "prompt": ("prompt", "caption", "text"),
    "label": ("label", "good", "thumb", "desirable"),
}
"""What a column may be called; the first that is there."""
GOOD, BAD = ("1", "true", "up", "good", "yes", "+1"), ("0", "false", "down", "bad", "no", "-1")
LabelLayout = Literal["auto", "table", "pairs"]


class Labelled(NamedTuple):
    """One verdict."""

    prompt: str
    picture: Picture
    good: bool

    @property
    def pictures(self) -> tuple[Picture, ...]:
        return (self.picture,)


def read_labels(
    path: Path, layout: LabelLayout = "auto", left_out: Counter[str] | None = None, most: int | None = None
) -> list[Labelled]:
    """All labelled pictures at `path`, or the first `most`, in their order on disk; UserError says which line of which
    file is wrong. Rows that are none are counted in `left_out` by the reason."""
    counts: Counter[str] = Counter() if left_out is None else left_out
    file = None if layout == "pairs" else find(path)
    if file is None and layout == "table":
        raise UserError(f"data.labels={path}: it holds no labels{', labels'.join(KINDS)}. Write one of {EXAMPLE}.")
    try:
        rows = _pairs(path, counts, most) if file is None else _table(file, counts)
        found = list(islice(rows, most))
    except Unreadable as error:
        raise UserError(f"data.labels: {error}") from None
    if not found and most is None:
        told = ", ".join(f"{number} {why}" for why, number in counts.items())
        raise UserError(
            f"data.labels={path}: there is no labelled image in it{f' ({told})' if told else ''}. Give some, such as "
            f"{EXAMPLE}."
        )
    return found


def find(path: Path) -> Path | None:
    """The table that `path` is or holds; None where there is none, and it may be pairs."""
    if path.is_file():
        return path if path.suffix in KINDS and path.stem != Path(PAIRS).stem else None
    return next((path / f"labels{kind}" for kind in KINDS if (path / f"labels{kind}").is_file()), None)


def _pairs(path: Path, counts: Counter[str], most: int | None) -> Iterator[Labelled]:
    try:
        pairs = read_pairs(path, "auto", counts, most=most)
    except UserError as error:
        said = str(error).removeprefix("data.pairs").lstrip(":= ")
        raise UserError(
            f"data.labels={path}: holds no table of labels (labels{', labels'.join(KINDS)}), of which a row is "
            f"{EXAMPLE}. Nor can it be read as pairs: {said}"
        ) from None
    for pair in pairs:
        if pair.tie:
            counts["ties"] += 1
            continue
        yield Labelled(pair.prompt, pair.winner, True)
        yield Labelled(pair.prompt, pair.loser, False)


def _table(file: Path, counts: Counter[str]) -> Iterator[Labelled]:
    for where, row, picture in _rows(file):
        named = {str(key).strip().lower(): value for key, value in row.items()}
        _, value = _cell(named, "image", where)
        if picture is None and not (isinstance(value, str) and value.strip()):
            raise UserError(f"{where} has no path under image. Write {EXAMPLE}.")
        prompt = _cell(named, "prompt", where)[1]
        verdict = _verdict(_cell(named, "label", where)[1], where)
        if verdict is None:
            counts["not judged"] += 1
        elif not isinstance(prompt, str) or not prompt.strip():
            counts["without a prompt"] += 1
        else:
            yield Labelled(prompt.strip(), picture or Picture(file.parent / str(value).strip()), verdict)


def _rows(file: Path) -> Iterator[tuple[str, Mapping[str, Any], Picture | None]]:
    """(where, row, its picture where the table itself holds it)."""
    if file.suffix == ".parquet":
        yield from _parquet_rows(file)
        return
    text = read_text(file)
    if file.suffix == ".jsonl":
        for number, record in json_lines(text, str(file), EXAMPLE):
            where = f"{file}: line {number}"
            if not isinstance(record, dict):
                raise UserError(f"{where} is no JSON object. Write {EXAMPLE}.")
            yield where, record, None
        return
    for number, record in table(text, str(file), file.suffix):
        _needed(record, file)
        yield f"{file}: line {number}", record, None


def _parquet_rows(file: Path) -> Iterator[tuple[str, Mapping[str, Any], Picture]]:
    opened = parquet(file)
    columns = {name.strip().lower(): name for name in opened.schema_arrow.names}
    _needed(columns, file)
    image = columns[_cell(dict.fromkeys(columns), "image", str(file))[0]]
    row = 0
    for batch in opened.iter_batches(columns=[name for name in columns.values() if name != image]):
        for record in batch.to_pylist():
            yield f"{file}: row {row}", record | {image: None}, Picture(file, row, image)
            row += 1


def _needed(names: Iterable[str], file: Path) -> None:
    """UserError where a column is missing; of a table of pairs it says how that is read."""
    pairs = called(names, PAIR_NAMES)
    if "label" not in names and pairs["winner"] in names and pairs["loser"] in names:
        raise UserError(
            f"{file}: has the columns of pairs, {pairs['winner']} and {pairs['loser']}, and none of labels. Set "
            "data.layout=pairs to take the former as good and the latter as bad."
        )
    needed(called(names, NAMES), names, str(file))


def _cell(row: Mapping[str, Any], what: str, where: str) -> tuple[str, Any]:
    """(column, value) of one of `NAMES`."""
    for name in NAMES[what]:
        if name in row:
            return name, row[name]
    raise UserError(f"{where} has no {what} (it has {', '.join(row)}). Name a column or key {what}.")


def _verdict(value: Any, where: str) -> bool | None:
    """Good or not; None for a missing label, which is null, empty or NaN."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, float) and math.isnan(value):
        return None
    said = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip().lower()
    said = said.removesuffix(".0")
    if said not in GOOD + BAD:
        raise UserError(
            f"{where} has the label {value!r}, which is neither good ({', '.join(GOOD)}) nor bad ({', '.join(BAD)}). "
            "Write 1 or 0; make scores into labels by a threshold first."
        )
    return said in GOOD
