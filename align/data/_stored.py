"""What sources of pictures on disk share: rows made or read, cached as latents, put into buckets, and taken up again.

row i of update u is sample u batch_size + i; each bucket is an endless stream of its rows, an epoch at a time in an
order of its own; which bucket serves an update is drawn by (seed, update), in proportion to the buckets' rows.
"""

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from torch import Tensor

from align.data._cache import PictureCache
from align.data._dataset_config import ROWS, is_foreign
from align.data._datasets import DATASETS, bring, brought, check_columns
from align.data._datasets import left_out as reasons
from align.data._make import check, finished, make
from align.data._store import TensorStore
from align.data._streams import Streams, chosen
from align.data._workplace import Workplace
from align.errors import UserError
from align.models._identity import digest
from samplers import generator

LARGE = 64 * 2**20
"""Bytes of tables beyond which a look reads no more than a row."""


@dataclass(frozen=True)
class StoredBatch:
    """Rows of one update; nothing is read before `load`."""

    source: Any
    rows: tuple[int, ...]
    """Numbers of the rows in the data."""
    indices: tuple[int, ...]
    """Global sample indices."""
    step: int

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice) -> Self:
        return replace(self, rows=self.rows[rows], indices=self.indices[rows])

    @property
    def prompts(self) -> tuple[str, ...]:
        return tuple(self.source.rows[row].prompt for row in self.rows)

    @property
    def views(self) -> tuple[int, ...]:
        """A number of each row and its flip."""
        return tuple(2 * row + self.source.flipped(i) for row, i in zip(self.rows, self.indices, strict=True))

    def store(self, name: str, settings: Any) -> TensorStore | None:
        """Where an objective keeps what it makes of rows with these settings; None in a rehearsal."""
        return None if self.source.cache is None else self.source.cache.store(name, settings)

    def load(self) -> Any:
        """The latents and embeddings of these rows."""
        return self.source.load(self)


class Stored:
    """Batches of `batch_size` rows. `prepare` must have been called before the first. A source names its rows (`noun`,
    which is also the setting that says where they are) and the images of a row (`sides`), and reads them."""

    noun = "pairs"
    sides: tuple[str, ...] = ("winner", "loser")

    def __init__(self, config: Any, *, batch_size: int, seed: int):
        self.config, self.batch_size, self.seed = config, batch_size, seed
        self.folder = Path(getattr(config, self.noun)).expanduser()
        self.rows: list[Any] = []
        self.cache: PictureCache | None = None
        self.step = 0
        self.streams = Streams(seed, {})
        self._keys: list[str] = []
        self._brought = False
        self._aside: TemporaryDirectory[str] | None = None  # where a look puts what it brings, as long as this lives

    def read(self, left_out: Counter[str], around: Workplace, most: int | None = None) -> list[Any]:
        """All rows that are on disk, or the first `most`; those that are none are counted by their reason."""
        raise NotImplementedError

    def local(self, around: Workplace, native: str, left_out: Counter[str]) -> Path:
        """Where the rows lie: the folder that is named, or that of the dataset, which is brought here first."""
        config = self.config
        if around is None and self._aside is not None:  # a look
            return Path(self._aside.name)
        if not self._foreign(native):
            return self.folder
        cache = Path(config.cache).expanduser() if config.cache else None
        if around.accelerator.is_main_process:
            around.say(f"data: {config.named}, read by `datasets`, is in {brought(config, cache)}")
        around.accelerator.wait_for_everyone()
        self._brought = True
        folder = brought(config, cache)
        left_out.update(reasons(folder))
        return folder

    def _foreign(self, native: str) -> bool:
        """Whether `datasets` reads it."""
        config = self.config
        local = config.making or not is_foreign(config.named, native, mapped=config.columns is not None)
        return config.from_hub() or not local

    def look(self) -> list[Any] | None:
        """The rows that are here already; None where there are none, or too many to be read twice. What is wrong with
        their table is said here, before a model is loaded, and so is a folder to make rows in whose name is a slip of
        one that has some."""
        file = f"{self.noun}.jsonl"
        here = self.folder.exists() if self.config.making is None else (self.folder / file).is_file()
        if here:
            foreign = self._foreign(file)
            files = self.folder.rglob("*") if self.folder.is_dir() else [self.folder]
            large = sum(f.stat().st_size for f in files if foreign or f.suffix.lower() in ROWS) > LARGE
            if foreign and large:
                check_columns(self.config)
                return None
            if foreign:
                self._aside = TemporaryDirectory()
                try:
                    bring(self.config, Path(self._aside.name))
                except OSError as error:
                    said = f"cannot be read, or written to {self._aside.name} ({error.strerror})"
                    raise UserError(f"data.{self.noun}={self.folder}: {said}. Check its rights and the disk.") from None
            nowhere: Any = None  # nothing is kept here, and nothing said
            rows = self.read(Counter(), nowhere, 1 if large else None)
            return None if large else rows[: self.config.max_rows]
        beside = self.folder.absolute().parent
        if self.config.making is not None and not self.folder.exists() and beside.is_dir():
            words = re.sub(r"\d+", "", self.folder.name)  # of pairs1 and pairs2 each is meant
            there = [path.name for path in beside.iterdir() if (path / file).is_file()]
            there = [name for name in there if re.sub(r"\d+", "", name) != words]
            if close := difflib.get_close_matches(self.folder.name, there, n=1, cutoff=0.6):
                raise UserError(
                    f"data.{self.noun}={self.folder}: there is no such folder, and {close[0]} beside it has {file}. "
                    f"Name that, or make the folder first if {self.noun} are to be made in it."
                )
        return None

    def usable(self, row: Any) -> str:
        """ "" where a row is to be trained on, else the plural of what it is."""
        return ""

    def notes(self, rows: Sequence[Any]) -> Iterator[str]:
        """What else is to be said of them."""
        yield from ()

    def verdict(self, row: Any) -> Any:
        """What beside the pictures' order says which is liked."""
        raise NotImplementedError

    def stream(self, bucket: str, row: Any) -> str:
        """The stream of a row of this bucket."""
        return bucket

    def prepare(self, around: Workplace) -> None:
        """Makes the rows if that is asked for, reads them, and fills the cache; says what was left out and why."""
        self.make(around)
        left_out: Counter[str] = Counter()
        rows = self.read(left_out, around)
        if not self._brought:  # of a dataset the first rows have been brought, whatever became of them
            rows = rows[: self.config.max_rows]
        self.cache = self.cached(around)
        self._keys, refused, examples = self.cache.fill(rows)
        config, named = self.config, f"data.{self.noun}={getattr(self.config, self.noun)}"
        for kind, count in refused.items():
            if (config.two_sizes if kind == "two sizes" else config.damaged) == "refuse":
                set_to = "data.two_sizes or data.damaged" if hasattr(config, "two_sizes") else "data.damaged"
                raise UserError(
                    f"{named}: {count} of {len(rows)} {self.noun} cannot be used ({kind}), such as "
                    f"{'; '.join(examples)}. Repair them, or set {set_to} to skip."
                )
        kept = [i for i, row in enumerate(rows) if self._keys[i] and not self.usable(row)]
        others = Counter(why for row in rows if (why := self.usable(row)))
        reasons = [f"{count} {kind}" for kind, count in sorted((refused + left_out).items())]
        reasons += [f"{count} {kind}" for kind, count in others.items()]
        around.say(f"data: {len(kept)} {self.noun}" + (f", left out: {', '.join(reasons)}" if reasons else ""))
        if refused:
            around.say(f"  such as {'; '.join(examples)}")
        for note in self.notes([rows[i] for i in kept]):
            around.say(note)
        if not kept:
            raise UserError(f"{named}: none of its {len(rows)} {self.noun} can be used.")
        self.rows, streams = rows, {}
        for i in kept:
            streams.setdefault(self.stream(self.cache.bucket(self._keys[i]), rows[i]), []).append(i)
        taken, self.streams = self.streams.taken, Streams(self.seed, streams)
        self.streams.taken = taken

    def all_prompts(self) -> list[str]:
        """What is trained on, each prompt as often as it has rows."""
        return [row.prompt for row in self.rows]

    def contents(self) -> dict[str, str]:
        """What a run depends on of these rows, as digests by what they are of; for a run that is taken up again."""
        assert self.cache is not None, "prepare was not called"
        stamps = self.cache.stamps
        return {
            f"data.{self.noun}, prompts": digest([row.prompt for row in self.rows]),
            f"data.{self.noun}, pictures": digest([sorted(each) for each in stamps]),
            f"data.{self.noun}, which is preferred": digest([*stamps, *(self.verdict(row) for row in self.rows)]),
        }

    def make(self, around: Workplace) -> None:
        """Makes the rows where the recipe says how and they are not there."""
        config = self.config.making
        if config is None:
            if self.config.make is not None:
                around.say(f"data.{self.noun}={self.folder}: there are {self.noun}, which are read; none are made")
            return
        if finished(config, self.folder):
            check(config, self.folder, around, whole=True)
        else:
            around.say(f"{make(config, self.folder, around)} {self.noun} in {self.folder}")

    def cached(self, around: Workplace) -> PictureCache:
        """The cache of this source for this model."""
        config = self.config
        base = self.folder if self.folder.is_dir() else self.folder.parent
        if config.from_hub():
            base = DATASETS.expanduser()
        folder = Path(config.cache).expanduser() if config.cache else base / "cache"
        two_sizes = getattr(config, "two_sizes", "fit")
        return PictureCache(folder, config.views, sides=self.sides, two_sizes=two_sizes, around=around)

    def bucket(self) -> str:
        """Which bucket serves the next update."""
        return chosen({name: len(rows) for name, rows in self.streams.streams.items()}, self.seed, self.step)

    def numbers(self) -> tuple[tuple[int, ...], int]:
        """The global sample indices of the next update, and its number; it is then the one after."""
        first, step = self.step * self.batch_size, self.step
        self.step += 1
        return tuple(range(first, first + self.batch_size)), step

    def posteriors(self, batch: StoredBatch) -> tuple[dict[str, Tensor], Tensor]:
        """({side_mean, side_logvar: (b, C, h, w)}, size ids (b, sides, 6)) of a batch, on the device."""
        assert self.cache is not None, "prepare was not called"
        found = [self.cache.images.read(self._keys[row]) for row in batch.rows]
        flips: Sequence[int] = [self.flipped(index) for index in batch.indices]
        device = self.cache.around.accelerator.device
        latents = {
            name: torch.stack([row[name][side] for row, side in zip(found, flips, strict=True)]).to(device)
            for name in self.cache.names
        }
        return latents, torch.stack([row["ids"] for row in found]).to(device)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "taken": dict(self.streams.taken)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.streams.taken = state["step"], dict(state["taken"])

    def flipped(self, index: int) -> int:
        """1 where sample `index` sees its pictures mirrored."""
        if not self.config.views.flip:
            return 0
        return int(torch.randint(2, (), generator=generator(self.seed, "flip", index)))
