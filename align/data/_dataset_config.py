"""Which rows a recipe asks for: a source, what its columns are called, and what is made where there are none.

A source is a Hub id, a dataset that is known by name, a table, or a folder; what `datasets` reads of these is brought
by align/data/_datasets.py.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from align.data._columns import known, problem
from align.registry import ComponentConfig

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
NATIVE = {"pairs": "pairs.jsonl", "labels": "labels.jsonl", "captions": "captions.jsonl", "prompts": "prompts.jsonl"}
SETTINGS = "settings.json"
"""Beside what data.make has made."""
FOREIGN = (".arrow", ".tar")
ROWS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", *FOREIGN)
"""Endings of a file of rows."""
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")


class DatasetConfig(ComponentConfig):
    """What of a dataset is taken; for a source that is a Hub id, a name, or a table with columns of other names."""

    source: ClassVar[tuple[str, str]] = ("pairs", "pairs")
    """(the setting that names the source, its kind in align/data/_columns.py)."""
    columns: dict[str, str] | None = None
    """What the source's columns are called, such as {prompt: caption, winner: jpg_0, loser: jpg_1}: prompt with winner
    and loser; or image_0, image_1, label_0, label_1; or image and rank (group); labels: image, prompt, label; captioned
    pictures: image, caption. `a.0` is a place in a list. Default: as the datasets that are known by name have them."""
    split: str = "train"
    """Of a dataset with several."""
    subset: str | None = None
    """The configuration of a Hub dataset that has several."""
    revision: str | None = None
    """Branch, tag or commit of a Hub dataset; the recipe in a run's folder names the commit that was used."""
    streaming: bool = False
    """Read a dataset row by row and keep only `max_rows`, without downloading the rest."""
    max_rows: int | None = Field(default=None, ge=1)
    """The first so many rows. Default: all."""

    @property
    def named(self) -> str:
        """What names the source."""
        return str(getattr(self, self.source[0]))

    def from_hub(self) -> bool:
        """Whether the source is a dataset on the Hub."""
        return getattr(self, "make", None) is None and is_hub(self.named)

    def is_missing(self) -> bool:
        """Whether the source is neither here nor on the Hub."""
        source = self.named
        return not Path(source).expanduser().exists() and not is_hub(source)

    def holds(self, path: Path) -> bool:
        """Whether a folder holds a table that is read without a map of columns."""
        return (path / NATIVE[self.source[1]]).is_file()

    @property
    def making(self) -> Any:
        """`make`, where rows are to be made or have been; None where somebody's own lie there, which are read."""
        make, path = getattr(self, "make", None), Path(self.named).expanduser()
        if make is None or path.is_file():
            return None
        if not path.is_dir() or (path / SETTINGS).is_file():
            return make
        mapped = self.columns is not None and any(file.suffix.lower() in ROWS for file in path.rglob("*"))
        return None if mapped or self.holds(path) else make

    def to_make(self) -> Iterator[tuple[str, str]]:
        """(key, what is wrong) where a folder of rows would be called like a file, or hold somebody's pictures."""
        (setting, kind), path = self.source, Path(self.named).expanduser()
        if self.is_missing() and path.suffix in ROWS:
            yield (
                f".{setting}",
                f"{self.named}: there is no such file, and data.make would make a folder of that name. Check the path, "
                "or name a folder for what is to be made.",
            )
        if path.is_dir() and any(file.suffix.lower() in PICTURES for file in path.iterdir()):
            yield (
                f".{setting}",
                f"{self.named}: holds pictures and no table of {kind}, and data.make would draw others beside them. "
                f"Write {NATIVE[kind]} there to train on these, or name another folder for what is to be made.",
            )

    def asked(self) -> Iterator[tuple[str, str]]:
        """(key, what is wrong) with these settings."""
        source = self.named
        if self.columns is not None and (told := problem(self.source[1], self.columns)):
            yield ".columns", told
        if self.streaming and self.max_rows is None:
            yield ".max_rows", "is not set, and streaming would never end it. Set how many rows, such as 10000."
        if is_hub(source) and self.columns is None and known(source) is None:
            yield (
                ".columns",
                f"are missing: there is no folder {source} here, and what the columns of a Hub dataset of that name "
                "hold is not known. Check the path, or say it, such as {prompt: caption, winner: jpg_0, loser: jpg_1}.",
            )


def is_hub(source: str) -> bool:
    """Whether a source is a dataset on the Hub: known by name, or owner/name where nothing of that name lies here."""
    if Path(source).expanduser().exists():
        return False
    return known(source) is not None or bool(HUB_ID.fullmatch(source) and not Path(source).suffix)


def is_foreign(source: str, native: str, *, mapped: bool) -> bool:
    """Whether a local source is for `datasets` to read: Arrow or tar files, or a table that has a map of columns and is
    none that is read as it is (parquet and JSON of pairs)."""
    path = Path(source).expanduser()
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()] if path.is_dir() else []
    if (path / native).is_file() or not files:
        return False
    endings = {file.suffix.lower() for file in files}
    return bool(endings & {*FOREIGN}) or (mapped and not endings & ({".parquet"} if native == "pairs.jsonl" else set()))
