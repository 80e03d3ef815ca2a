"""Where the pictures of pairs are, files and cells of parquet files: their bytes, and what identifies their content."""

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from align.errors import UserError
from rewards._images import hidden

SPLIT = re.compile(r"(?:^|[-_.])(train|training|validation|valid|val|dev|test)(?:[-_.]|$)")
"""The split that a shard's name says: train-00000-of-00645-b66ac786bf6fb553.parquet, validation_unique-..., ..."""


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
        value = _column(self.path, group, self.column, tuple(status(self.path)))[self.row - start].as_py()
        if isinstance(value, dict):  # `datasets` saves an Image() as {bytes, path}
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str) and value:
            file = self.path.parent / value
            if not file.resolve().is_relative_to(self.path.parent.resolve()):
                raise OSError(f"row {self.row} names {value}, outside the folder of {self.path.name}")
            return file.read_bytes()
        if not value:
            raise OSError(f"row {self.row} holds no {self.column}")
        return value

    def stamp(self) -> str:
        """What identifies the content without decoding it; "" if the image is not there."""
        try:
            if self.row is None:
                return content(self.path)
            return f"{stamped(self.path)}:{self.row}:{self.column}"
        except OSError:
            return ""

    def __str__(self) -> str:
        return str(self.path) if self.row is None else f"{self.path} row {self.row} {self.column}"


def content(file: Path) -> str:
    """A hash of all bytes of a file, read in parts."""
    found = hashlib.blake2b(digest_size=16)
    with file.open("rb") as opened:
        while part := opened.read(2**24):
            found.update(part)
    return found.hexdigest()


def status(file: Path) -> list[int]:
    """What changes when a file is written: its size, and the times of its content and of its entry."""
    known = file.stat()
    return [known.st_size, known.st_mtime_ns, known.st_ctime_ns]


def stamped(file: Path) -> str:
    """`content`, once for a file that has not changed."""
    return _stamped(file, tuple(status(file)))


@lru_cache(maxsize=4096)
def _stamped(file: Path, _: tuple[int, ...]) -> str:
    return content(file)


def shards(path: Path) -> list[Path]:
    """The parquet files to train on: `path` itself, or those of the split train where the files of a folder say which
    split they are, without the subsets of unique prompts that lie beside it."""
    if path.is_file():
        return [path]
    files = [f for f in sorted(path.rglob("*.parquet")) if not any(hidden(p) for p in _below(f, path))]
    splits = {file: split_of(file, path) for file in files}
    if not (training := [file for file in files if splits[file].startswith("train")]):
        named = sorted({split for split in splits.values() if split})
        if len(named) > 1:
            raise UserError(
                f"data.pairs={path}: its shards are of {', '.join(named)}, none of the split train, and to train on "
                "all would leave nothing held out. Give the files of one."
            )
        return files
    whole = [file for file in training if "unique" not in file.stem]
    return whole or training


def shards_said(path: Path) -> str | None:
    """Which of a folder's shards are read, where that is not all of them."""
    if path.is_file() or len(read := shards(path)) == len(list(path.rglob("*.parquet"))):
        return None
    others = sorted({split_of(f, path) or "no split" for f in path.rglob("*.parquet")} - {"train"})
    return f"data: {len(read)} parquet files of the split train; not read: {', '.join(others) or 'its subsets'}"


def split_of(file: Path, folder: Path) -> str:
    """train, validation, test, ... as the file's name or its folder's say; "" where neither does."""
    for name in [file.stem, *(part.name for part in reversed(_below(file, folder)[:-1]))]:
        if found := SPLIT.search(name.lower().replace("_unique", "")):
            return found[1]
    return ""


def _below(file: Path, folder: Path) -> list[Path]:
    return [Path(part) for part in file.relative_to(folder).parts]


def parquet(file: Path) -> Any:
    """An opened parquet file."""
    try:
        return _parquet(file, tuple(status(file)))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error}). Check data.pairs.") from None


@lru_cache(maxsize=8)
def _parquet(file: Path, _: tuple[int, ...]) -> Any:
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(file)
    except (OSError, ArrowInvalid) as error:
        raise UserError(f"{file}: it is no readable parquet file ({error}). Download it again.") from None


def _group(file: Path, row: int) -> tuple[int, int]:
    """(row group that holds `row`, that group's first row)."""
    metadata, start = parquet(file).metadata, 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if row < start + rows:
            return group, start
        start += rows
    raise OSError(f"{file} has no row {row}")


@lru_cache(maxsize=4)  # one row group of two columns, and the next: pairs are read in their order
def _column(file: Path, group: int, column: str, _: tuple[int, ...]) -> Any:
    return parquet(file).read_row_group(group, columns=[column])[column]
