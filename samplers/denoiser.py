"""What a sampler asks of a model: a callable (x_t, t, cond) -> out that knows its schedule and prediction kind.

Guidance is a wrapper around one (`samplers.guidance`), and is a denoiser again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from samplers.prediction import Prediction, split
from samplers.schedule import Schedule


class Cond(Protocol):
    """Conditioning of a batch, opaque outside its model: prompts, masks, sizes. One row per sample."""

    def cat(self, other: Self) -> Self: ...  # rows of self, then rows of other
    def repeat(self, times: int) -> Self: ...  # every row `times` times, copies side by side
    def __getitem__(self, rows: Any) -> Self: ...  # a slice, a list or a tensor of row numbers
    def to(self, *args: Any) -> Self: ...  # as Tensor.to
    def __len__(self) -> int: ...


@dataclass(frozen=True)
class TensorCond:
    """The Cond that most models need: named tensors, all (B, ...)."""

    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        if len({len(tensor) for tensor in self.tensors.values()}) != 1:
            shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
            raise ValueError(f"the tensors of a Cond must have the same number of rows, got {shapes}")

    def cat(self, other: Self) -> Self:
        return type(self)({name: torch.cat([tensor, other.tensors[name]]) for name, tensor in self.tensors.items()})

    def repeat(self, times: int) -> Self:
        return type(self)({name: tensor.repeat_interleave(times, 0) for name, tensor in self.tensors.items()})

    def __getitem__(self, rows: Any) -> Self:
        rows = slice(rows, rows + 1 or None) if isinstance(rows, int) else rows
        return type(self)({name: tensor[rows] for name, tensor in self.tensors.items()})

    def to(self, *args: Any) -> Self:
        return type(self)({name: tensor.to(*args) for name, tensor in self.tensors.items()})

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))


class Denoiser(Protocol):
    """A network with its conventions. `t` is () or (B,), in [0, 1]; x_t and the raw output are (B, ...)."""

    @property
    def schedule(self) -> Schedule: ...
    @property
    def kind(self) -> Prediction: ...
    def __call__(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor: ...


def denoise(denoiser: Denoiser, x_t: Tensor, t: Tensor, cond: Any) -> tuple[Tensor, Tensor]:
    """One call, split: (x0, eps) predicted at t, both (B, ...)."""
    return split(denoiser(x_t, t, cond), x_t, *denoiser.schedule(t), denoiser.kind)
