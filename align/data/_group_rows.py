"""Rows of an update that trains on the policy's own images: a step of an image's window or way, or a look at it."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Rollout(NamedTuple):
    """n images and what was kept of their making; tensors on the CPU, empty where nothing was wanted."""

    prompts: list[str]
    groups: Tensor
    """(n,) int64: the number of the prompt's draw in the run; images of one draw are a group, equal texts are not."""
    indices: Tensor
    """(n,) int64: global sample index."""
    scores: dict[str, Tensor]
    """label -> (n,) raw rewards."""
    x0: Tensor
    """(n, C, h, w)"""
    states: Tensor
    """(n, W + 1, C, h, w): the window's, or all, from noise to data."""
    log_probs: Tensor
    """(n, W): mean over dimensions, as drawn."""
    means: Tensor
    """(n, W, C, h, w)"""
    times: Tensor
    """(W + 1,) float64"""

    @staticmethod
    def together(parts: "list[Rollout]") -> "Rollout":
        """One after another."""
        first = parts[0]
        scores = {label: torch.cat([part.scores[label] for part in parts]) for label in first.scores}
        tensors = {n: torch.cat([getattr(p, n) for p in parts]) for n in ROWWISE}
        return Rollout([prompt for p in parts for prompt in p.prompts], scores=scores, times=first.times, **tensors)


ROWWISE = ("groups", "indices", "x0", "states", "log_probs", "means")


@dataclass(frozen=True)
class GroupBatch:
    """Rows of one update: (image, slot) pairs into a rollout. Nothing is copied before a row is asked for."""

    rollout: Rollout
    advantages: Tensor
    """(n,) float64, of the images."""
    image: Tensor
    """(B,) int64: the row's image."""
    slot: Tensor
    """(B,) int64: the row's step of the window, or the number of its look."""
    step: int
    """Number of the update."""
    number: int
    """Number of the rollout."""
    fresh: bool
    """Whether the policy that drew it has not moved since."""
    said: dict[str, Tensor]
    """Metrics of the whole update, ()."""
    used_up: bool = True
    """Whether this is the last update on the rollout."""

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, rows: Any) -> "GroupBatch":
        return replace(self, image=self.image[rows], slot=self.slot[rows])

    @property
    def prompts(self) -> tuple[str, ...]:
        return tuple(self.rollout.prompts[i] for i in self.image.tolist())

    @property
    def indices(self) -> tuple[int, ...]:
        return tuple(self.rollout.indices[self.image].tolist())

    @property
    def groups(self) -> tuple[int, ...]:
        return tuple(self.rollout.groups[self.image].tolist())

    @property
    def advantage(self) -> Tensor:
        """(B,) float32"""
        return self.advantages[self.image].float()

    @property
    def x0(self) -> Tensor:
        return self.rollout.x0[self.image]

    @property
    def x_t(self) -> Tensor:
        return self.rollout.states[self.image, self.slot]

    @property
    def x_s(self) -> Tensor:
        return self.rollout.states[self.image, self.slot + 1]

    @property
    def log_prob(self) -> Tensor:
        """(B,): of x_s, under the policy that drew it."""
        return self.rollout.log_probs[self.image, self.slot]

    @property
    def mean(self) -> Tensor:
        return self.rollout.means[self.image, self.slot]

    @property
    def t(self) -> Tensor:
        """(B,) float64"""
        return self.rollout.times[self.slot]

    @property
    def s(self) -> Tensor:
        return self.rollout.times[self.slot + 1]
