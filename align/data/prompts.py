"""Prompts as a batch source: an endless stream, each epoch in an order of its own that (seed, epoch) alone decides."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field

from align.data._dataset_config import NATIVE, DatasetConfig
from align.data._datasets import brought
from align.data._prompt_files import SHAPES, bundled, meant, read
from align.data._readable import Readers, scoring, unread
from align.errors import UserError
from align.files.texts import Unreadable


class PromptBatch(NamedTuple):
    """Rows of one update: the prompts, each row's global sample index, from which its noise is drawn, and the update's
    number, from which what all rows share is drawn."""

    prompts: tuple[str, ...]
    indices: tuple[int, ...]
    step: int

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: slice) -> "PromptBatch":  # type: ignore[override]  # rows, not fields
        return PromptBatch(self.prompts[rows], self.indices[rows], self.step)


class PromptsConfig(DatasetConfig):
    """Prompts to train on."""

    source = ("prompts", "prompts")
    name: Literal["prompts"] = "prompts"
    prompts: list[str] | str
    """The prompts themselves; or a file: .txt (one a line), .jsonl, .csv, .tsv (key or column "prompt") or .json (a
    list); or a set, such as shapes:train, animals:train, scenes:train (align/data/sets); or, with `columns`, any table
    and any dataset on the Hub."""
    count: int | None = Field(default=None, ge=1)
    """Use only the first `count` of them (of a shapes set: equal shares of its skills)."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        if self.columns is None:
            yield from problems(self.prompts, ".prompts", self.count, scoring(recipe))
        else:
            yield from self.asked()


class Prompts:
    """Batches of `batch_size` prompts. An update's rows continue where the last one's ended, over epochs' borders too,
    so that every batch is full and row i of update u is sample number u batch_size + i of the run."""

    Config = PromptsConfig

    def __init__(self, config: PromptsConfig, *, batch_size: int, seed: int):
        named = config.prompts if config.columns is None else str(brought(config) / NATIVE["prompts"])
        self.prompts = load_prompts(named, count=config.count, key="data.prompts")
        self.batch_size = batch_size
        self.seed = seed
        self.step = 0
        self._epoch, self._order = -1, []

    def __iter__(self) -> Iterator[PromptBatch]:
        while True:
            indices = tuple(range(self.step * self.batch_size, (self.step + 1) * self.batch_size))
            batch = PromptBatch(tuple(self._prompt(i) for i in indices), indices, self.step)
            self.step += 1
            yield batch

    def all_prompts(self) -> list[str]:
        """What is trained on."""
        return list(self.prompts)

    def _prompt(self, index: int) -> str:
        epoch, place = divmod(index, len(self.prompts))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
            self._epoch, self._order = epoch, torch.randperm(len(self.prompts), generator=generator).tolist()
        return self.prompts[self._order[place]]

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]


def load_prompts(source: list[str] | str, *, count: int | None = None, key: str) -> list[str]:
    """The prompts that `source` names (see PromptsConfig), the first `count` of them; `key` is what errors call it."""
    try:
        return _load(source, count)
    except _Problem as problem:
        raise UserError(f"{key}: {problem}") from None


def words(prompt: str) -> str:
    """A prompt as it is compared with another: case and blanks say nothing."""
    return " ".join(prompt.split()).casefold()


def problems(
    source: list[str] | str, key: str, count: int | None = None, asked: Readers = ()
) -> Iterator[tuple[str, str]]:
    """(key, what is wrong) if the prompts cannot be loaded, or if a reward of `asked` cannot read the first `count` of
    them (align/data/_readable.py): for a config's `conflicts`."""
    asked = list(asked)
    try:
        loaded = _load(source, count if asked else 1)
    except _Problem as problem:
        yield key, str(problem)
        return
    yield from ((key, text) for text in unread(loaded, asked))


class _Problem(Exception):
    """What is wrong with prompts, why, and what to do."""


def _load(source: list[str] | str, count: int | None) -> list[str]:
    if isinstance(source, str) and source.startswith(SHAPES):
        from align.shapes.prompts import SPLITS, prompts

        if (split := source.removeprefix(SHAPES)) not in SPLITS:
            known = ", ".join(SHAPES + s for s in SPLITS)
            raise _Problem(f"there is no set {source}.{meant(source)} Choose one of {known}.")
        return prompts(split, count)
    lines = _read(source) if isinstance(source, str) else source
    for number, prompt in enumerate(lines, 1):
        if not prompt.strip():
            raise _Problem(f"prompt {number} of {len(lines)} is empty. Remove it or write it.")
    if not lines:
        raise _Problem("there are no prompts in the list. Give at least one.")
    return list(lines[:count])


def _read(source: str) -> list[str]:
    try:
        return [item.prompt for item in read(str(bundled(source) or source))]
    except Unreadable as error:
        raise _Problem(str(error)) from None
