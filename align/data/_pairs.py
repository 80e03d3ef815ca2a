"""Preference pairs as they lie on disk: which image is preferred for which prompt, without opening the images.

folder     pairs.jsonl, one {"prompt": ..., "winner": PATH, "loser": PATH, "tie": false} a line, paths relative to it
pickapic   *.parquet with caption, jpg_0, jpg_1 (bytes), label_0, label_1 (1, 0, or 0.5 for a tie): Pick-a-Pic v2,
           Kirstain et al., arXiv 2305.01569; rows without a label (has_label false) are left out
hpdv2      train.json, a list of {prompt, file_path: [A, B], human_preference: [1, 0]}, images in train/: HPDv2,
           Wu et al., arXiv 2306.09341
"""

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from align.errors import UserError

FILE_NAME = "pairs.jsonl"
Layout = Literal["auto", "folder", "pickapic", "hpdv2"]


@dataclass(frozen=True)
class Picture:
    """An image file, or a cell of a parquet file."""

    path: Path
    row: int | None = None
    column: str = ""

    def read(self) -> bytes:
        """The encoded image. Raises OSError if it is not there."""
        if self.row is None:
            return self.path.read_bytes()
        group, start = _group(self.path, self.row)
        value = _column(self.path, group, self.column)[self.row - start].as_py()
        if not value:
            raise OSError(f"row {self.row} holds no {self.column}")
        return value

    def stamp(self) -> str:
        """What identifies the content without decoding it; "" if the image is not there."""
        try:
            if self.row is None:
                return hashlib.blake2b(self.path.read_bytes(), digest_size=16).hexdigest()
            return f"{self.path.name}:{self.path.stat().st_size}:{self.row}:{self.column}"
        except OSError:
            return ""

    def __str__(self) -> str:
        return str(self.path) if self.row is None else f"{self.path} row {self.row} {self.column}"


class Pair(NamedTuple):
    """One comparison; in a tie the order of the two says nothing."""

    prompt: str
    winner: Picture
    loser: Picture
    tie: bool = False


def read_pairs(path: Path, layout: Layout = "auto") -> list[Pair]:
    """All pairs at `path`, in their order on disk; UserError says which line of which file is wrong."""
    chosen = detect(path) if layout == "auto" else layout
    readers = {"folder": _folder, "pickapic": _pickapic, "hpdv2": _hpdv2}
    pairs = list(readers[chosen](path))
    if not pairs:
        raise UserError(f"data.pairs={path}: there is no pair in it. Give a folder that holds some.")
    return pairs


def detect(path: Path) -> str:
    """Which of the layouts `path` has."""
    if (path / FILE_NAME).is_file() or path.suffix == ".jsonl":
        return "folder"
    if path.suffix == ".parquet" or any(path.rglob("*.parquet")):
        return "pickapic"
    if (path / "train.json").is_file() or path.suffix == ".json":
        return "hpdv2"
    raise UserError(
        f"data.pairs={path}: it holds no {FILE_NAME}, no .parquet file (Pick-a-Pic) and no train.json (HPDv2). Check "
        "the path, make pairs with `align pairs`, or write a pairs.jsonl of {prompt, winner, loser}."
    )


def _folder(path: Path) -> Iterator[Pair]:
    file = path if path.suffix == ".jsonl" else path / FILE_NAME
    for number, line in enumerate(_text(file).splitlines(), 1):
        if line.strip():
            record = _json(line, f"{file}: line {number}")
            texts = [record.get(key) for key in ("prompt", "winner", "loser")] if isinstance(record, dict) else [None]
            if not all(isinstance(text, str) and text for text in texts):
                raise UserError(f"{file}: line {number} needs text under prompt, winner and loser.")
            prompt, winner, loser = map(str, texts)
            yield Pair(prompt, Picture(file.parent / winner), Picture(file.parent / loser), bool(record.get("tie")))


def _hpdv2(path: Path) -> Iterator[Pair]:
    file = path if path.suffix == ".json" else path / "train.json"
    for number, record in enumerate(_json(_text(file), str(file))):
        names = record.get("file_path") or record.get("image_path") or []
        liked = record.get("human_preference") or []
        if len(names) != 2 or len(liked) != 2 or not record.get("prompt"):
            raise UserError(f"{file}: entry {number} needs a prompt, two file_path and two human_preference.")
        first, second = (Picture(_within(file.parent, name)) for name in names)
        winner, loser = (first, second) if liked[0] >= liked[1] else (second, first)
        yield Pair(record["prompt"], winner, loser, tie=liked[0] == liked[1])


def _within(folder: Path, name: str) -> Path:
    """HPDv2 names its training images without the folder train/ that they are unpacked into."""
    return folder / "train" / name if not (folder / name).exists() else folder / name


def _pickapic(path: Path) -> Iterator[Pair]:
    for file in [path] if path.is_file() else sorted(path.rglob("*.parquet")):
        table = _parquet(file)
        names = set(table.schema_arrow.names)
        wanted = ["caption", "label_0", "label_1"]
        if missing := sorted({*wanted, "jpg_0", "jpg_1"} - names):
            raise UserError(f"{file}: it has no column {', '.join(missing)}: this is not Pick-a-Pic's layout.")
        row = 0
        for batch in table.iter_batches(columns=[*wanted, *({"has_label"} & names)]):
            for record in batch.to_pylist():
                pictures = Picture(file, row, "jpg_0"), Picture(file, row, "jpg_1")
                row += 1
                labels = record["label_0"], record["label_1"]
                if record.get("has_label", True) and None not in labels:
                    winner, loser = pictures if labels[0] >= labels[1] else pictures[::-1]
                    yield Pair(record["caption"], winner, loser, tie=labels[0] == labels[1])


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}). Check data.pairs.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: byte {error.start} is not UTF-8. Save the file as UTF-8.") from None


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON ({error.msg}).") from None


@lru_cache(maxsize=8)
def _parquet(file: Path) -> Any:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(
            f"{file}: reading parquet files needs pyarrow. Install it: pip install 'diffalign[parquet]'."
        ) from None
    try:
        return ParquetFile(file)
    except (OSError, ArrowInvalid) as error:
        raise UserError(f"{file}: it is no readable parquet file ({error}). Download it again.") from None


def _group(file: Path, row: int) -> tuple[int, int]:
    """(row group that holds `row`, that group's first row)."""
    metadata, start = _parquet(file).metadata, 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if row < start + rows:
            return group, start
        start += rows
    raise OSError(f"{file} has no row {row}")


@lru_cache(maxsize=4)  # one row group of two columns, and the next: pairs are read in their order
def _column(file: Path, group: int, column: str) -> Any:
    return _parquet(file).read_row_group(group, columns=[column])[column]


def opened(data: bytes) -> Any:
    """The RGB image of encoded bytes, fully decoded. Raises OSError, ValueError or SyntaxError if it is damaged."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")
