"""Preference pairs as a batch source: made or imported, cached, and drawn so that row i of update u is always the same.

row i of update u is sample u batch_size + i; each bucket is an endless stream of its pairs, an epoch at a time in an
order of its own; which bucket serves an update is drawn by (seed, update), in proportion to the buckets' pairs.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from align.data._cache import NAMES, PairCache
from align.data._make import MakeConfig, check, finished, make
from align.data._pairs import Layout, Pair, detect, read_pairs
from align.data._pictures import Picture, shards_said
from align.data._store import TensorStore
from align.data._views import ViewConfig
from align.data._workplace import Workplace
from align.errors import UserError
from align.models._base import Posterior
from align.models._identity import digest
from align.registry import ComponentConfig
from samplers import generator


class PreferencesConfig(ComponentConfig):
    """Pairs of images, one preferred to the other."""

    name: Literal["preferences"] = "preferences"
    pairs: str
    """A folder with pairs.jsonl, Pick-a-Pic's parquet files, or HPDv2's train.json; with `make`, where they go."""
    layout: Layout = "auto"
    """Which of these it is; auto: by the files that are there."""
    make: MakeConfig | None = None
    """Make the pairs from the recipe's model, where the folder holds none yet (also: align pairs)."""
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

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        if self.make is None and not Path(self.pairs).expanduser().exists():
            yield (
                ".pairs",
                f"{self.pairs}: there is no such folder. Check the path, or say under data.make what to make them of.",
            )
        if self.make is not None:
            yield from self.make.problems(".make")


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

    def conds(self, dropped: Sequence[bool]) -> tuple[Any, Any]:
        """(winners' Cond, losers' Cond), b rows each, without the prompt where `dropped` says so, for both alike."""
        rows = [len(dropped) if drop else row for row, drop in enumerate(dropped)]
        return self.sized(self.cond.cat(self.uncond)[rows] if any(dropped) else self.cond)


@dataclass(frozen=True)
class PairBatch:
    """Rows of one update; nothing is read before `load`."""

    source: "Preferences"
    rows: tuple[int, ...]
    """Numbers of the pairs in the data."""
    indices: tuple[int, ...]
    """Global sample indices."""
    step: int

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice) -> "PairBatch":
        return replace(self, rows=self.rows[rows], indices=self.indices[rows])

    @property
    def prompts(self) -> tuple[str, ...]:
        return tuple(self.source.pairs[row].prompt for row in self.rows)

    @property
    def ties(self) -> tuple[bool, ...]:
        return tuple(self.source.pairs[row].tie for row in self.rows)

    @property
    def views(self) -> tuple[int, ...]:
        """A number of each pair and its flip."""
        return tuple(2 * row + self.source.flipped(i) for row, i in zip(self.rows, self.indices, strict=True))

    def store(self, name: str, settings: Any) -> TensorStore | None:
        """Where an objective keeps what it makes of pairs with these settings; None in a rehearsal."""
        return None if self.source.cache is None else self.source.cache.store(name, settings)

    def load(self) -> Pairs:
        """The latents and embeddings of these rows."""
        return self.source.load(self)


class Preferences:
    """Batches of `batch_size` pairs. `prepare` must have been called before the first."""

    Config = PreferencesConfig

    def __init__(self, config: PreferencesConfig, *, batch_size: int, seed: int):
        self.config, self.batch_size, self.seed = config, batch_size, seed
        self.folder = Path(config.pairs).expanduser()
        self.pairs: list[Pair] = []
        self.cache: PairCache | None = None
        self.step = 0
        self._taken: dict[str, int] = {}
        self._keys: list[str] = []
        self._buckets: dict[str, list[int]] = {}
        self._orders: dict[str, tuple[int, list[int]]] = {}
        self._meta: Pairs | None = None

    def prepare(self, around: Workplace) -> None:
        """Makes the pairs if that is asked for, reads them, and fills the cache; says what was left out and why."""
        self.make(around)
        left_out: Counter[str] = Counter()
        pairs = read_pairs(self.folder, self.config.layout, left_out)
        layout = detect(self.folder) if self.config.layout == "auto" else self.config.layout
        if layout == "pickapic" and (line := shards_said(self.folder)):
            around.say(line)
        self.cache = self.cached(around)
        self._keys, refused, examples = self.cache.fill(pairs)
        config = self.config
        for kind, count in refused.items():
            if (config.two_sizes if kind == "two sizes" else config.damaged) == "refuse":
                raise UserError(
                    f"data.pairs={config.pairs}: {count} of {len(pairs)} pairs cannot be used ({kind}), such as "
                    f"{'; '.join(examples)}. Repair them, or set data.two_sizes or data.damaged to skip."
                )
        kept = [i for i, pair in enumerate(pairs) if self._keys[i] and (config.ties == "keep" or not pair.tie)]
        ties = sum(pair.tie for pair in pairs) if config.ties == "drop" else 0
        reasons = [f"{count} {kind}" for kind, count in sorted((refused + left_out).items())]
        reasons += [f"{ties} ties"] if ties else []
        around.say(f"data: {len(kept)} pairs" + (f", left out: {', '.join(reasons)}" if reasons else ""))
        if refused:
            around.say(f"  such as {'; '.join(examples)}")
        if not kept:
            raise UserError(f"data.pairs={config.pairs}: none of its {len(pairs)} pairs can be used.")
        self.pairs = pairs
        self._buckets = {}
        for i in kept:
            self._buckets.setdefault(self.cache.bucket(self._keys[i]), []).append(i)

    def all_prompts(self) -> list[str]:
        """What is trained on, each prompt as often as it has pairs."""
        return [pair.prompt for pair in self.pairs]

    def contents(self) -> dict[str, str]:
        """What a run depends on of these pairs, as digests by what they are of; for a run that is taken up again."""
        assert self.cache is not None, "prepare was not called"
        stamps = self.cache.stamps
        return {
            "data.pairs, prompts": digest([pair.prompt for pair in self.pairs]),
            "data.pairs, pictures": digest([sorted(both) for both in stamps]),
            "data.pairs, which is preferred": digest([*stamps, *(pair.tie for pair in self.pairs)]),
        }

    def make(self, around: Workplace) -> None:
        """Makes the pairs where the recipe says how and they are not there."""
        if self.config.make is None:
            return
        if finished(self.folder):
            check(self.config.make, self.folder, around, whole=True)
        else:
            around.say(f"{make(self.config.make, self.folder, around)} pairs in {self.folder}")

    def cached(self, around: Workplace) -> PairCache:
        """The cache of this source for this model."""
        base = self.folder if self.folder.is_dir() else self.folder.parent
        folder = Path(self.config.cache).expanduser() if self.config.cache else base / "cache"
        return PairCache(folder, self.config.views, two_sizes=self.config.two_sizes, around=around)

    def rehearse(self, around: Workplace) -> None:
        """In place of `prepare`, for a plan: pairs without data, on the model's own device."""
        model = around.model
        device = next(model.network.parameters()).device
        shape = model.latent_shape(self.config.views.image_size)
        empty = torch.empty(self.batch_size, *shape, device=device)
        cond, q = model.text.encode(["a prompt"] * self.batch_size), Posterior(empty, empty)
        self._meta = Pairs(q, q, cond, model.text.encode([""]), lambda cond: (cond, cond))
        self.pairs, self._keys, self._buckets = (
            [Pair("a prompt", Picture(self.folder), Picture(self.folder))],
            [""],
            {"": [0]},
        )

    def __iter__(self) -> Iterator[PairBatch]:
        while True:
            bucket = self._bucket()
            start = self._taken.get(bucket, 0)
            rows = tuple(self._row(bucket, start + i) for i in range(self.batch_size))
            first = self.step * self.batch_size
            batch = PairBatch(self, rows, tuple(range(first, first + self.batch_size)), self.step)
            self.step += 1
            self._taken[bucket] = start + self.batch_size
            yield batch

    def load(self, batch: PairBatch) -> Pairs:
        """See `PairBatch.load`."""
        if self._meta is not None:
            rows = slice(0, len(batch))
            q = Posterior(self._meta.winner.mean[rows], self._meta.winner.logvar[rows])
            return self._meta._replace(winner=q, loser=q, cond=self._meta.cond[rows])
        assert self.cache is not None, "prepare was not called"
        found = [self.cache.images.read(self._keys[row]) for row in batch.rows]
        sides = [self.flipped(index) for index in batch.indices]
        device = self.cache.around.accelerator.device

        def stacked(name: str) -> Tensor:
            return torch.stack([row[name][side] for row, side in zip(found, sides, strict=True)]).to(device)

        winner_mean, winner_logvar, loser_mean, loser_logvar = map(stacked, NAMES)
        ids = torch.stack([row["ids"] for row in found]).to(device)
        reads_sizes = getattr(self.cache.around.model, "with_sizes", None)

        def sized(cond: Any) -> tuple[Any, Any]:
            return (reads_sizes(cond, ids[:, 0]), reads_sizes(cond, ids[:, 1])) if reads_sizes else (cond, cond)

        q_w, q_l = Posterior(winner_mean, winner_logvar), Posterior(loser_mean, loser_logvar)
        return Pairs(q_w, q_l, self.cache.cond(batch.prompts), self.cache.cond([""]), sized)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "taken": dict(self._taken)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self._taken = state["step"], dict(state["taken"])

    def flipped(self, index: int) -> int:
        """1 where sample `index` sees its pair mirrored."""
        if not self.config.views.flip:
            return 0
        return int(torch.randint(2, (), generator=generator(self.seed, "flip", index)))

    def _bucket(self) -> str:
        names = sorted(self._buckets)
        if len(names) == 1:
            return names[0]
        weights = torch.tensor([float(len(self._buckets[name])) for name in names])
        return names[int(weights.multinomial(1, generator=generator(self.seed, "bucket", self.step)))]

    def _row(self, bucket: str, place: int) -> int:
        rows: Sequence[int] = self._buckets[bucket]
        epoch, position = divmod(place, len(rows))
        if self._orders.get(bucket, (-1, []))[0] != epoch:
            order = torch.randperm(len(rows), generator=generator(self.seed, f"order/{bucket}", epoch)).tolist()
            self._orders[bucket] = epoch, order
        return rows[self._orders[bucket][1][position]]
