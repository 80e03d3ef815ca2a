"""What a sampler asks of a model: a callable (x_t, t, cond) -> out that knows its schedule and prediction kind.

Guidance is a wrapper, not an option: `cfg(denoiser, uncond, scale)` is a denoiser again,

    out = out_u + scale (out_c - out_u)          Ho & Salimans, arXiv 2207.12598; scale = 1 is the conditional model

evaluated in one batched call, and valid for every prediction kind because `split` is linear in out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor

from samplers.prediction import Prediction, split
from samplers.schedule import Schedule, broadcast

CfgGrad = Literal["both", "cond", "none"]
"""What of a guided output carries gradient; see `cfg`."""


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


@dataclass(frozen=True)
class _Guided:
    inner: Denoiser
    uncond: Any
    scale: float
    low: float
    high: float
    rescale: Callable[[Tensor, Tensor], Tensor] | None
    grad: CfgGrad

    @property
    def schedule(self) -> Schedule:
        return self.inner.schedule

    @property
    def kind(self) -> Prediction:
        return self.inner.kind

    def __call__(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        guided = (t >= self.low) & (t <= self.high)
        if t.ndim == 0 and not guided:
            return self.inner(x_t, t, cond)
        uncond = self.uncond.repeat(len(cond)) if len(self.uncond) == 1 else self.uncond
        out_u, out_c = self.inner(
            torch.cat([x_t, x_t]), t if t.ndim == 0 else torch.cat([t, t]), uncond.cat(cond)
        ).chunk(2)
        if self.grad != "both":
            out_u = out_u.detach()
        if self.grad == "none":  # the value of out_c, with 1/scale of its gradient: guidance then makes it 1
            out_c = out_c.detach() + (out_c - out_c.detach()) / (self.scale or 1)
        scale = self.scale if t.ndim == 0 else broadcast(torch.where(guided, self.scale, 1.0), out_u)
        out = out_u + scale * (out_c - out_u)
        return out if self.rescale is None else self.rescale(out, out_c)


def cfg(
    denoiser: Denoiser,
    uncond: Any,
    scale: float,
    *,
    interval: tuple[float, float] = (0.0, 1.0),
    rescale: Callable[[Tensor, Tensor], Tensor] | None = None,
    grad: CfgGrad = "both",
) -> Denoiser:
    """Classifier-free guidance on `denoiser`; `uncond` is a Cond of B rows, or of one row for all.

    Outside `interval` (bounds on t, inclusive) the conditional model runs alone, at half the cost: guidance in a
    limited interval, Kynkaanniemi et al., arXiv 2404.07724. scale = 1 returns `denoiser` itself: the formula at 1.
    rescale: (out, out_c) -> out, what a family does to a guided output, such as to keep the norm of out_c.
    grad: "both" branches carry gradient; "cond" alone, so that it is scale times that of out_c (as Flow-GRPO trains);
    or that of out_c alone, as if there were no guidance ("none"). Values are the same.
    """
    if scale == 1:
        return denoiser
    return _Guided(denoiser, uncond, scale, *interval, rescale, grad)
