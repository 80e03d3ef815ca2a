"""Labelled pictures as a batch source: single images that were found good or bad, made or imported, and cached.

Rows are drawn as pairs are (align/data/_stored.py). With `good_share` good and bad ones are streams of their own, and
every batch has that share of good images, at places that (seed, update) alone decides.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import Field

from align.data._dataset_config import DatasetConfig
from align.data._labels import FILE_NAME, LabelLayout, Labelled, find, read_labels
from align.data._make_labels import LabelsMakeConfig
from align.data._pairs import has_pairs
from align.data._pictures import Picture
from align.data._stored import Stored, StoredBatch
from align.data._streams import Streams, chosen
from align.data._views import ViewConfig
from align.data._workplace import Workplace
from align.errors import UserError
from align.models._base import Posterior, device_of
from samplers import generator


class LabelsConfig(DatasetConfig):
    """Images, each with the prompt it is for and a thumb up or down."""

    source = ("labels", "labels")
    meant: ClassVar[Mapping[str, str]] = {"pairs": "labels", "prompts": "labels", "folder": "labels"}
    name: Literal["labels"] = "labels"
    labels: str
    """A table of columns image, prompt, label (.jsonl, .csv, .tsv, .parquet), or a folder with labels.jsonl or the
    like; or pairs, whose winners are good and losers bad; or, with `columns`, any table and any dataset on the Hub.
    With `make`, a folder where they go if it holds none yet."""
    layout: LabelLayout = "auto"
    """Which of these it is; auto: a table of labels where there is one."""
    make: LabelsMakeConfig | None = None
    """Make the labels from the recipe's model and a judge, where the folder holds none yet (also: align pairs)."""
    views: ViewConfig = ViewConfig()
    """Sizes, crops and flips."""
    damaged: Literal["skip", "refuse"] = "skip"
    """A missing or damaged image: left out and counted, or an error."""
    good_share: float | None = Field(default=None, gt=0, lt=1)
    """Share of good images in every batch (Diffusion-KTO: 0.8). Default: as they come."""
    cache: str | None = None
    """Folder of the latents and embeddings. Default: `cache` in the folder of the labels."""

    def holds(self, path: Path) -> bool:
        return find(path) is not None or has_pairs(path)

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        if self.making is None:
            yield from self.asked()
        if self.making is None and self.is_missing():
            yield (
                ".labels",
                f"{self.labels}: there is no such file or folder. Check the path, or say under data.make what to make "
                "them of.",
            )
        if self.making is not None:
            yield from self.to_make()
            yield from self.making.problems(".make")
        train = recipe.get("train")
        if self.good_share is not None and train is not None and self.good(train.batch_size) in (0, train.batch_size):
            yield (
                ".good_share",
                f"{self.good_share} of train.batch_size={train.batch_size} leaves no image of one kind. Raise "
                f"train.batch_size to {self._least()}, or set data.good_share=null.",
            )

    def _least(self) -> int:
        """The smallest batch that holds both kinds."""
        return next(size for size in range(2, 10_000) if 0 < self.good(size) < size)

    def good(self, batch_size: int) -> int:
        """Good images of a batch, where their share is set."""
        return round((self.good_share or 0.0) * batch_size)


class Pictures(NamedTuple):
    """A micro-batch on the device; b rows."""

    image: Posterior
    cond: Any
    """Cond of the prompts."""
    others: Any
    """Cond of another row's prompt each: of the next one of the whole update."""
    uncond: Any
    """Cond of the empty prompt, one row."""
    sized: Callable[[Any], Any]
    """Cond of b rows -> the same where the model reads its images' sizes."""

    def conds(self, dropped: Sequence[bool], *, others: bool = False) -> Any:
        """Cond of b rows, of their own prompts or others', without the prompt where `dropped` says so."""
        cond = self.others if others else self.cond
        rows = [len(dropped) if drop else row for row, drop in enumerate(dropped)]
        return self.sized(cond.cat(self.uncond)[rows] if any(dropped) else cond)


@dataclass(frozen=True)
class LabelBatch(StoredBatch):
    """Rows of one update; nothing is read before `load`."""

    source: "Labels"
    others: tuple[int, ...] = ()
    """Numbers of the rows whose prompts do not belong to these."""

    def __getitem__(self, rows: slice) -> Self:
        return replace(super().__getitem__(rows), others=self.others[rows])

    @property
    def good(self) -> tuple[bool, ...]:
        return tuple(self.source.rows[row].good for row in self.rows)


class Labels(Stored):
    """Batches of `batch_size` labelled images. `prepare` must have been called before the first."""

    Config = LabelsConfig
    noun = "labels"
    sides = ("image",)

    def __init__(self, config: LabelsConfig, *, batch_size: int, seed: int):
        super().__init__(config, batch_size=batch_size, seed=seed)
        self._meta: Pictures | None = None

    def read(self, left_out: Counter[str], around: Workplace, most: int | None = None) -> list[Labelled]:
        return read_labels(self.local(around, FILE_NAME, left_out), self.config.layout, left_out, most)

    def look(self) -> list[Labelled] | None:
        rows = super().look()
        if rows is not None:
            self._both_kinds([row.good for row in rows])
        return rows

    def verdict(self, row: Labelled) -> bool:
        return row.good

    def stream(self, bucket: str, row: Labelled) -> str:
        return bucket if self.config.good_share is None else f"{bucket}/{'good' if row.good else 'bad'}"

    def prepare(self, around: Workplace) -> None:
        super().prepare(around)
        kept = [self.rows[i].good for rows in self.streams.streams.values() for i in rows]
        around.say(f"  {sum(kept)} good, {len(kept) - sum(kept)} bad")
        self._both_kinds(kept)
        alone = {name.rpartition("/")[0] for name in self.streams.streams} if self.config.good_share else set()
        for bucket in alone:  # one of a size that has but one kind
            if len(sides := [f"{bucket}/{k}" for k in ("good", "bad") if f"{bucket}/{k}" in self.streams.streams]) < 2:
                raise UserError(
                    f"data.good_share={self.config.good_share}: images of latent size {bucket} are all "
                    f"{sides[0].rpartition('/')[2]}. Leave it out, or set data.views.buckets=false."
                )

    def _both_kinds(self, good: Sequence[bool]) -> None:
        if 0 < sum(good) < len(good):
            return
        made = ", or set another data.make.threshold in another folder" if self.config.making else ""
        raise UserError(
            f"data.labels={self.config.labels}: all {len(good)} images are {'good' if sum(good) else 'bad'}: there is "
            f"nothing to tell apart. Give some of the other kind{made}."
        )

    def __iter__(self) -> Iterator[LabelBatch]:
        while True:
            rows = self._mixed() if self.config.good_share else self.streams.take(self.bucket(), self.batch_size)
            yield LabelBatch(self, tuple(rows), *self.numbers(), others=(*rows[1:], *rows[:1]))

    def _mixed(self) -> list[int]:
        """The next update's rows where good and bad ones are streams of their own."""
        sizes: Counter[str] = Counter()
        for name, rows in self.streams.streams.items():
            sizes[name.rpartition("/")[0]] += len(rows)
        bucket, count = chosen(sizes, self.seed, self.step), self.config.good(self.batch_size)
        rows = self.streams.take(f"{bucket}/good", count)
        rows += self.streams.take(f"{bucket}/bad", self.batch_size - count)
        order = torch.randperm(len(rows), generator=generator(self.seed, "places", self.step)).tolist()
        return [rows[i] for i in order]

    def rehearse(self, around: Workplace) -> None:
        """In place of `prepare`, for a plan: pictures without data, on the model's own device."""
        model = around.model
        device = device_of(model.network)
        empty = torch.empty(self.batch_size, *model.latent_shape(self.config.views.image_size), device=device)
        cond = model.text.encode(["a prompt"] * self.batch_size)
        self._meta = Pictures(Posterior(empty, empty), cond, cond, model.text.encode([""]), lambda cond: cond)
        nowhere = Picture(self.folder)
        self.rows = [Labelled("a prompt", nowhere, True), Labelled("a prompt", nowhere, False)]
        share = self.config.good_share
        self.streams = Streams(self.seed, {"": [0, 1]} if share is None else {"/good": [0], "/bad": [1]})

    def load(self, batch: LabelBatch) -> Pictures:
        """See `StoredBatch.load`."""
        if self._meta is not None:
            rows = slice(0, len(batch))
            q = Posterior(self._meta.image.mean[rows], self._meta.image.logvar[rows])
            cond = self._meta.cond[rows]
            return self._meta._replace(image=q, cond=cond, others=cond)
        assert self.cache is not None, "prepare was not called"
        found, ids = self.posteriors(batch)
        model, others = self.cache.around.model, [self.rows[row].prompt for row in batch.others]
        cond, other, uncond = (self.cache.cond(prompts) for prompts in (batch.prompts, others, [""]))
        reads_sizes = getattr(model, "with_sizes", None)

        def sized(cond: Any) -> Any:
            return reads_sizes(cond, ids[:, 0]) if reads_sizes else cond

        return Pictures(Posterior(found["image_mean"], found["image_logvar"]), cond, other, uncond, sized)
