"""Preference pairs as they lie on disk: which image is preferred for which prompt, without opening the images.

folder     pairs.jsonl, one {"prompt": ..., "winner": PATH, "loser": PATH, "tie": false} a line, paths relative to it;
           or a .csv, .tsv or, without tie, .parquet of these columns
a name     of align/data/_columns.py: what these datasets' files are called and hold; parquet files (of the split train
           where splits are named) are Pick-a-Pic's, a train.json is HPDv2's
columns    any table in parquet or JSON, by a map of its columns

A row without a judgement (a label that is null or NaN, judged 0), a picture or a prompt is no pair: it is left out and
counted. Other formats, and what is on the Hub, are brought here first (align/data/_datasets.py).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from align.data._columns import IMAGES, KNOWN, Columns, called, cell, needed
from align.data._judged import Found, Pair, Read, judged
from align.data._pictures import Picture, parquet, shards
from align.errors import UserError
from align.files.texts import TABLES, Unreadable, json_lines, json_value, read_text, table

FILE_NAME = "pairs.jsonl"
KINDS = (".jsonl", *TABLES)
NAMES = {"prompt": ("prompt", "caption", "text"), "winner": ("winner", "chosen"), "loser": ("loser", "rejected")}
"""What a column or key may be called; the first that is there."""
TIE = {"": None, "0": False, "false": False, "1": True, "true": True}
MANY = 5  # wrong lines that are named
Layout = Literal["auto", "folder", "pickapic", "hpdv2", "hpdv3", "imagerewarddb", "open_image_preferences"]
EXAMPLE = '{"prompt": "...", "winner": "a.png", "loser": "b.png"}'


def read_pairs(
    path: Path,
    layout: Layout = "auto",
    left_out: Counter[str] | None = None,
    columns: Columns | None = None,
    most: int | None = None,
) -> list[Pair]:
    """All pairs at `path`, in their order on disk; UserError says which line of which file is wrong. Rows that are no
    pairs are counted in `left_out` by the reason. most: of the first so many rows alone."""
    counts: Counter[str] = Counter() if left_out is None else left_out
    pairs: list[Pair] = []
    try:
        for found in islice(_found(path, layout, columns), most):
            if isinstance(found, Pair):
                pairs.append(found)
            else:
                counts[found] += 1
    except Unreadable as error:
        raise UserError(f"data.pairs: {error}") from None
    if not pairs and most is None:
        told = ", ".join(f"{number} {why}" for why, number in counts.items())
        raise UserError(
            f"data.pairs={path}: there is no pair in it{f' ({told})' if told else ''}. Give a folder that holds some."
        )
    return pairs


def _found(path: Path, layout: Layout, columns: Columns | None) -> Found:
    name = detect(path) if layout == "auto" and columns is None else layout
    if name == "folder":
        return _folder(path)
    if layout == "auto" and name == "pickapic" and columns is None:
        names = parquet(shards(path)[0]).schema_arrow.names
        name = _by_columns(names)
        columns = None if name else called(names, NAMES)
        if not name and "tie" in names:
            raise UserError(
                f"data.pairs={path}: a column tie is read of {', '.join(KINDS)} alone. Save it as one of these."
            )
    known = KNOWN.get(name)
    return judged(_rows(path, columns or (known.columns if known else {}), name), columns or KNOWN[name].columns)


def detect(path: Path) -> str:
    """Which of the layouts `path` has."""
    if own(path) is not None:
        return "folder"
    if (path / KNOWN["imagerewarddb"].file).is_file():
        return "imagerewarddb"
    if path.suffix == ".parquet" or (path.is_dir() and any(path.rglob("*.parquet"))):
        return "pickapic"
    if (path / "train.json").is_file() or path.suffix == ".json":
        return "hpdv2"
    if path.is_file():
        raise UserError(f"data.pairs={path}: is no table of pairs ({', '.join(KINDS)}, .parquet, .json). Name one.")
    raise UserError(
        f"data.pairs={path}: it holds no {FILE_NAME}, pairs.csv or pairs.tsv, no .parquet file (Pick-a-Pic) and no "
        "train.json (HPDv2). Check the path, make pairs with `align pairs`, or write a table of prompt, winner, loser."
    )


def own(path: Path) -> Path | None:
    """The table of the toolkit's own columns that `path` is or holds."""
    if path.suffix in KINDS and not path.is_dir():
        return path
    return next((file for kind in KINDS if (file := path / f"pairs{kind}").is_file()), None)


def has_pairs(path: Path) -> bool:
    """Whether a folder holds pairs in one of the layouts."""
    try:
        return bool(detect(path))
    except UserError:
        return False


def _by_columns(names: Iterable[str]) -> str:
    """The known dataset that has these columns, or Pick-a-Pic where some are its own, and the others then missed by
    name; else "": a table of the toolkit's columns, or of nobody's."""
    there, known = {*names}, {name: {*each.columns.values()} for name, each in KNOWN.items() if not each.file}
    fitting = [name for name, columns in known.items() if columns - {"has_label"} <= there]
    part = ["pickapic"] if there & {"jpg_0", "jpg_1"} else []
    return [*fitting, *part, ""][0]


def _folder(path: Path) -> Found:
    file = own(path) or path / FILE_NAME
    found: list[Pair] = []
    wrong: list[str] = []
    for number, record in _lines(file, wrong):
        cells = record if isinstance(record, dict) else {}
        columns = called(cells, NAMES)
        said = {ours: cells.get(theirs) for ours, theirs in columns.items()}
        absent = [key for key, value in said.items() if not (isinstance(value, str) and value)]
        tie = cells.get("tie")
        if absent:
            other = [key for key in cells if key not in (*columns.values(), "tie")]
            has = f" (it has {', '.join(other)})" if other else ""
            wrong.append(f"line {number} needs text under {', '.join(absent)}{has}")
        elif not isinstance(tie, bool | None):
            wrong.append(f"line {number} says tie: {tie!r}, must be true or false")
        else:
            winner, loser = (Picture(file.parent / str(said[key])) for key in ("winner", "loser"))
            found.append(Pair(str(said["prompt"]), winner, loser, bool(tie)))
    if wrong:
        more = f"; {len(wrong) - MANY} more lines" if len(wrong) > MANY else ""
        so = f"one {EXAMPLE} a line" if file.suffix == ".jsonl" else "a prompt and two pictures in every row"
        raise UserError(f"{file}: {'; '.join(wrong[:MANY])}{more}. Write {so}.")
    yield from found


def _lines(file: Path, wrong: list[str]) -> Iterator[tuple[int, Any]]:
    text = read_text(file)
    if file.suffix == ".jsonl":
        yield from json_lines(text, str(file), EXAMPLE, wrong)
        return
    for number, row in table(text, str(file), file.suffix):
        needed(called(row, NAMES), row, str(file))
        cells: dict[str, Any] = {name: value.strip() for name, value in row.items()}
        tie = cells.get("tie", "").lower()
        yield number, cells | {"tie": TIE.get(tie, tie)}


def _rows(path: Path, columns: Columns, name: str) -> Iterator[Read]:
    known = KNOWN.get(name)
    file = path / known.file if known and known.file and path.is_dir() else path
    if file.suffix == ".json":
        yield from _json(file, columns, known.inside if known else "")
        return
    for shard in [file] if file.is_file() else shards(path):
        yield from _parquet(shard, columns, known.inside if known else "")


def _json(file: Path, columns: Columns, inside: str) -> Iterator[Read]:
    records = json_value(read_text(file), str(file))
    if not isinstance(records, list):
        raise UserError(f"{file}: is no list of comparisons.")
    names: Iterable[str] = {key for record in records if isinstance(record, dict) for key in record}
    if "image_path" in names and "file_path" not in names:  # HPDv2 has been published with either
        columns = {ours: theirs.replace("file_path", "image_path") for ours, theirs in columns.items()}
    needed(columns, names, str(file))
    for number, record in enumerate(records):
        where = f"{file}: entry {number}"
        told = {ours: cell(record, theirs) for ours, theirs in columns.items() if ours in IMAGES}
        if not isinstance(record, dict) or not all(isinstance(name, str) for name in told.values()):
            raise UserError(f"{where} names no picture under {', '.join(columns[ours] for ours in told)}.")
        yield Read(where, record, {ours: Picture(_within(file.parent, inside, str(n))) for ours, n in told.items()})


def _parquet(file: Path, columns: Columns, inside: str) -> Iterator[Read]:
    """Pictures that a column holds stay in it; those that it names are files."""
    table = parquet(file)
    wanted = needed(columns, table.schema_arrow.names, str(file))
    paths = {c for c in wanted if str(table.schema_arrow.field(c).type) in ("string", "large_string")}
    held = {ours: theirs for ours, theirs in columns.items() if ours in IMAGES}
    row = 0
    for batch in table.iter_batches(columns=[c for c in wanted if c in paths or c not in held.values()]):
        for record in batch.to_pylist():
            yield Read(f"{file}: row {row}", record, _pictures(file, row, record, held, inside))
            row += 1


def _pictures(file: Path, row: int, record: Mapping[str, Any], held: Columns, inside: str) -> dict[str, Picture | None]:
    found: dict[str, Picture | None] = {}
    for ours, theirs in held.items():
        name = record.get(theirs)
        if inside and isinstance(name, str):
            found[ours] = Picture(_within(file.parent, inside, name))
        else:
            found[ours] = Picture(file, row, theirs)
    return found


def _within(folder: Path, inside: str, name: str) -> Path:
    """A path that a table names: below its folder, or below the one that the pictures are unpacked into."""
    return folder / inside / name if inside and not (folder / name).exists() else folder / name
