"""Preference pairs of the present policy: its own images, judged by the recipe's rewards, drawn anew as it learns.

    rollout     enough prompts, n images each, drawn by the policy for `every` updates (align/data/groups.py)
    pairs       of each prompt's images, as `align pairs` makes them (align/data/_make_pairs.py); equal scores are none
    update      the next batch_size pairs; where fewer are left, the next rollout is drawn first

So an update's pairs are at most `every` updates old, but for the few that a rollout leaves over. What is drawn, paired
and labelled depends on (seed, number of the rollout) and the policy alone; pairs not yet served go into the checkpoint.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from align.data._make_pairs import compared, labelled
from align.data._readable import scoring
from align.data._wanted import Wanted
from align.data._workplace import Workplace
from align.data.groups import Groups, GroupsConfig
from align.data.preferences import Pairs
from align.data.prompts import problems
from align.errors import UserError
from align.models._base import Posterior, device_of
from align.registry import ComponentConfig

PATIENCE = 3  # rollouts in a row without a pair


class OnlinePairsConfig(ComponentConfig):
    """Prompts, images a prompt, and how often the policy draws."""

    has_pairs: ClassVar[bool] = True

    name: Literal["online_pairs"] = "online_pairs"
    prompts: list[str] | str
    """As in data.prompts of other recipes."""
    count: int | None = Field(default=None, ge=1)
    """Use only the first `count` of them."""
    num_images: int = Field(default=4, ge=2)
    """Images a prompt."""
    every: int = Field(default=1, ge=1)
    """Updates that a rollout is for; then the policy of that moment draws the next."""
    choose: Literal["best_worst", "all"] = "best_worst"
    """Which of a prompt's images are compared."""
    temperature: float = Field(default=0.0, ge=0)
    """Of the Bradley-Terry noise in the labels, in units of the rewards' weighted sum; 0: none."""
    margin: float = Field(default=0.0, ge=0)
    """Leave out pairs whose scores are closer than this."""
    ties: ClassVar[str] = "drop"
    rollout_size: int = Field(default=16, ge=1)
    """Images drawn at once on one process."""
    overlap: bool = False
    """Ask for rewards while the next images are drawn; for rewards that wait for others, such as http."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield from problems(self.prompts, ".prompts", self.count, scoring(recipe))
        if not recipe.get("rewards", True):
            yield "rewards", "are missing: they are the judge. Add one, such as `rewards: {clip: {}}`."
        if (combine := recipe.get("combine")) is not None:
            yield from combine.unmeasured(recipe.get("rewards", ()))

    def num_prompts(self, batch_size: int) -> int:
        """Prompts of a rollout."""
        each = 1 if self.choose == "best_worst" else self.num_images * (self.num_images - 1) // 2
        return -(-self.every * batch_size // each)


@dataclass(frozen=True)
class OnlineBatch:
    """Rows of one update; tensors on the CPU."""

    model: Any
    x_w: Tensor
    """(b, C, h, w)"""
    x_l: Tensor
    prompts: tuple[str, ...]
    indices: tuple[int, ...]
    step: int

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: slice) -> "OnlineBatch":
        cut = {name: getattr(self, name)[rows] for name in ("x_w", "x_l", "prompts", "indices")}
        return replace(self, **cut)

    def store(self, name: str, settings: Any) -> None:
        """Nothing is kept: a pair does not come again."""

    def load(self) -> Pairs:
        """The latents, as the sampler ended with them, and the prompts' embeddings."""
        device, encode = device_of(self.model.network), self.model.text.encode
        winner, loser = (self._exactly(x.to(device)) for x in (self.x_w, self.x_l))
        return Pairs(winner, loser, encode(self.prompts), encode([""]), lambda cond: (cond, cond))

    def _exactly(self, x0: Tensor) -> Posterior:
        return Posterior(x0, torch.full_like(x0, -torch.inf))


class OnlinePairs:
    """Batches of `batch_size` pairs; `prepare` gives it the policy and the rewards."""

    Config = OnlinePairsConfig

    def __init__(self, config: OnlinePairsConfig, *, batch_size: int, seed: int):
        self.config, self.batch_size, self.seed = config, batch_size, seed
        prompts = config.num_prompts(batch_size)
        drawn = GroupsConfig(
            prompts=config.prompts,
            count=config.count,
            num_prompts=prompts,
            group_size=config.num_images,
            rollout_size=config.rollout_size,
            overlap=config.overlap,
        )
        self.groups = Groups(drawn, batch_size=prompts * config.num_images, seed=seed)
        self.step = self.number = self.drawing = 0
        self.prompts: list[str] = []
        """Of the pairs that are still to be served, with their latents `pairs` (2, n, C, h, w), winners first."""
        self.pairs: Tensor | None = None
        self._around: Workplace | None = None

    def prepare(self, around: Workplace) -> None:
        """Remembers whom to ask."""
        self._around = around
        self.groups.prepare(around)
        self.groups.wanted = Wanted()

    def rehearse(self, around: Workplace) -> None:
        """In place of `prepare`, for a plan: images without data, on the model's own device."""
        self._around = around
        self.groups.rehearse(around)
        self.drawing = self.groups.drawing // self.config.every

    def all_prompts(self) -> list[str]:
        """What is trained on."""
        return self.groups.source.all_prompts()

    def __iter__(self) -> Iterator[OnlineBatch]:
        assert self._around is not None, "prepare was not called"
        while True:
            self._fill()
            assert self.pairs is not None
            n, first = self.batch_size, self.step * self.batch_size
            (x_w, x_l), prompts = self.pairs[:, :n], tuple(self.prompts[:n])
            batch = OnlineBatch(self._around.model, x_w, x_l, prompts, tuple(range(first, first + n)), self.step)
            self.pairs, self.prompts, self.step = self.pairs[:, n:], self.prompts[n:], self.step + 1
            yield batch

    def _fill(self) -> None:
        """Draws until there are enough pairs for an update."""
        empty = 0
        while len(self.prompts) < self.batch_size:
            prompts, pairs = self._drawn()
            self.number += 1
            empty = 0 if prompts else empty + 1
            if empty == PATIENCE:
                raise UserError(
                    f"data: {PATIENCE} rollouts in a row have no pair: all images of a prompt are rewarded alike, or "
                    f"closer than data.margin={self.config.margin:g}. Lower it, or take a reward that tells more apart."
                )
            if prompts:
                self.prompts = [*self.prompts, *prompts]
                self.pairs = pairs if self.pairs is None else torch.cat([self.pairs, pairs], 1)

    def _drawn(self) -> tuple[list[str], Tensor]:
        """(prompts, (2, n, C, h, w)) of the pairs of the next rollout, the same on every process."""
        found = self.groups.drawn(self.number)
        around, n = self._around, self.config.num_images
        assert around is not None
        combine = around.rewards.combine if around.rewards is not None else lambda scores: next(iter(scores.values()))
        totals = combine(found.scores).double().view(-1, n)
        records = [
            (start, record)
            for start, group in zip(range(0, len(found.prompts), n), totals, strict=True)
            for a, b in compared(self.config.choose, group)
            if (record := labelled(self.config, group, a, b, self.seed, int(found.groups[start])))
        ]
        sides = [
            torch.tensor([start + r[side] for start, r in records], dtype=torch.long) for side in ("winner", "loser")
        ]
        device = found.x0.device
        return [found.prompts[start] for start, _ in records], torch.stack([found.x0[s.to(device)] for s in sides])

    def state_dict(self) -> dict[str, Any]:
        """With the pairs that are still to be served: they cannot be drawn again once the policy has moved."""
        pairs = self.pairs if self.prompts else None
        return {"step": self.step, "number": self.number, "prompts": list(self.prompts), "pairs": pairs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.number, self.prompts, self.pairs = (state[k] for k in ("step", "number", "prompts", "pairs"))
