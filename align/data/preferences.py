"""Preference pairs as a batch source: made or imported, cached, and drawn so that row i of update u is always the same.

Which rows an update has is told in align/data/_stored.py.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch

from align.data._dataset_config import DatasetConfig
from align.data._judged import Pair
from align.data._make_pairs import MakeConfig
from align.data._pairs import FILE_NAME, Layout, detect, has_pairs, read_pairs
from align.data._pictures import Picture, shards_said
from align.data._stored import Stored, StoredBatch
from align.data._streams import Streams
from align.data._views import ViewConfig
from align.data._workplace import Workplace
from align.models._base import Posterior, device_of
from rewards._numerals import counted


class PreferencesConfig(DatasetConfig):
    """Pairs of images, one preferred to the other."""

    has_pairs: ClassVar[bool] = True
    meant: ClassVar[Mapping[str, str]] = {"labels": "pairs", "prompts": "pairs", "folder": "pairs"}

    name: Literal["preferences"] = "preferences"
    pairs: str
    """A table of columns prompt, winner, loser and, if need be, tie (.jsonl, .csv, .tsv; .parquet without tie), or a
    folder with pairs.jsonl or the like; a copy of a dataset that is known by name; any table (see `columns`); a Hub id;
    a name: pickapic_v2, hpdv2, hpdv3, imagerewarddb, open_image_preferences. With `make`, a folder where they go if it
    holds none yet."""
    layout: Layout = "auto"
    """Which of these it is; auto: by the files that are there."""
    make: MakeConfig | None = None
    """Make the pairs from the recipe's model, where there are none yet (also: align pairs)."""
    views: ViewConfig = ViewConfig()
    """Sizes, crops and flips."""
    two_sizes: Literal["fit", "skip", "refuse"] = "fit"
    """A pair of images of two sizes: both into the winner's bucket, left out, or an error."""
    damaged: Literal["skip", "refuse"] = "skip"
    """A pair with a missing or damaged image: left out and counted, or an error."""
    ties: Literal["drop", "keep"] = "drop"
    """Pairs without a preference: left out, or kept for an objective that knows them (spm)."""
    cache: str | None = None
    """Folder of the latents and embeddings. Default: `cache` in the folder of the pairs."""

    def holds(self, path: Path) -> bool:
        return has_pairs(path)

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        if self.making is None:
            yield from self.asked()
        if self.making is None and self.is_missing():
            yield (
                ".pairs",
                f"{self.pairs}: there is no such file or folder. Check the path, or say under data.make what to make "
                "them of.",
            )
        if self.making is not None:
            yield from self.to_make()
            yield from self.making.problems(".make")


class Pairs(NamedTuple):
    """A micro-batch of pairs on the device; b rows."""

    winner: Posterior
    loser: Posterior
    cond: Any
    """Cond of the prompts."""
    uncond: Any
    """Cond of the empty prompt, one row."""
    sized: Callable[[Any], tuple[Any, Any]]
    """Cond of b rows -> (the winners', the losers'): two where the model reads its images' sizes, else one twice."""

    def swapped(self) -> "Pairs":
        """The same pairs with the other side preferred."""
        sized = self.sized
        return self._replace(winner=self.loser, loser=self.winner, sized=lambda cond: sized(cond)[::-1])

    def conds(self, dropped: Sequence[bool]) -> tuple[Any, Any]:
        """(winners' Cond, losers' Cond), b rows each, without the prompt where `dropped` says so, for both alike."""
        rows = [len(dropped) if drop else row for row, drop in enumerate(dropped)]
        return self.sized(self.cond.cat(self.uncond)[rows] if any(dropped) else self.cond)


@dataclass(frozen=True)
class PairBatch(StoredBatch):
    """Rows of one update; nothing is read before `load`."""

    source: "Preferences"

    @property
    def ties(self) -> tuple[bool, ...]:
        return tuple(self.source.rows[row].tie for row in self.rows)


class Preferences(Stored):
    """Batches of `batch_size` pairs. `prepare` must have been called before the first."""

    Config = PreferencesConfig

    def __init__(self, config: PreferencesConfig, *, batch_size: int, seed: int):
        super().__init__(config, batch_size=batch_size, seed=seed)
        self._meta: Pairs | None = None

    @property
    def pairs(self) -> list[Pair]:
        """All pairs, those that are left out too."""
        return self.rows

    def read(self, left_out: Counter[str], around: Workplace, most: int | None = None) -> list[Pair]:
        folder = self.local(around, FILE_NAME, left_out)
        if folder != self.folder:
            return read_pairs(folder, "folder", left_out)
        pairs = read_pairs(folder, self.config.layout, left_out, self.config.columns, most)
        layout = detect(folder) if self.config.layout == "auto" and self.config.columns is None else ""
        if around is not None and layout == "pickapic" and (line := shards_said(self.folder)):
            around.say(line)
        return pairs

    def notes(self, rows: Sequence[Pair]) -> Iterator[str]:
        same = [n for n, row in enumerate(rows, 1) if row.winner == row.loser]
        if same:
            named = f"{counted(len(same), 'pair')} of one picture twice, the first {same[0]} of {len(rows)}"
            yield f"  {named}: nothing is to be learnt from {'it' if len(same) == 1 else 'them'}"

    def usable(self, row: Pair) -> str:
        return "ties" if row.tie and self.config.ties == "drop" else ""

    def verdict(self, row: Pair) -> bool:
        return row.tie

    def rehearse(self, around: Workplace) -> None:
        """In place of `prepare`, for a plan: pairs without data, on the model's own device."""
        model = around.model
        device = device_of(model.network)
        shape = model.latent_shape(self.config.views.image_size)
        empty = torch.empty(self.batch_size, *shape, device=device)
        cond, q = model.text.encode(["a prompt"] * self.batch_size), Posterior(empty, empty)
        self._meta = Pairs(q, q, cond, model.text.encode([""]), lambda cond: (cond, cond))
        self.rows, self._keys = [Pair("a prompt", Picture(self.folder), Picture(self.folder))], [""]
        self.streams = Streams(self.seed, {"": [0]})

    def __iter__(self) -> Iterator[PairBatch]:
        while True:
            rows = self.streams.take(self.bucket(), self.batch_size)
            yield PairBatch(self, tuple(rows), *self.numbers())

    def load(self, batch: PairBatch) -> Pairs:
        """See `PairBatch.load`."""
        if self._meta is not None:
            rows = slice(0, len(batch))
            q = Posterior(self._meta.winner.mean[rows], self._meta.winner.logvar[rows])
            return self._meta._replace(winner=q, loser=q, cond=self._meta.cond[rows])
        assert self.cache is not None, "prepare was not called"
        found, ids = self.posteriors(batch)
        reads_sizes = getattr(self.cache.around.model, "with_sizes", None)

        def sized(cond: Any) -> tuple[Any, Any]:
            return (reads_sizes(cond, ids[:, 0]), reads_sizes(cond, ids[:, 1])) if reads_sizes else (cond, cond)

        q_w, q_l = (Posterior(found[f"{side}_mean"], found[f"{side}_logvar"]) for side in self.sides)
        return Pairs(q_w, q_l, self.cache.cond(batch.prompts), self.cache.cond([""]), sized)
