"""A chain of any length at the memory of one network call: its states are not kept, the backward pass makes them again.

The steps are `Leapfrog`'s, whose inverse is exact. (y, v) at the last network call is all that is kept; from there the
backward pass goes back step by step, calls the network at each state once more, now with a graph, and hands the
cotangents on:

    y_t = y_s - h v'        v = ((1 + m) f - v')/m              f = f(y_t), with its graph
    gv' += h gy'            gf = (1 + m) gv'                    gv = -m gv'          gy = gy' + gf df/dy

So it costs the calls that checkpointing costs, and keeps nothing a step. y and v are float64, whatever the network
computes in: going back magnifies rounding some thousand times, and latents are small beside what a network keeps.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from samplers.leapfrog import coefficients

Predict = Callable[[int, Tensor], tuple[Tensor, Tensor]]
"""(number of the call, x_t) -> (x0, eps), all (B, ...): one network call, with what graph its policy says."""


class _Chain:
    """The calls from `first` up to the last but one, and the coefficients of their steps."""

    def __init__(self, predict: Predict, dtype: torch.dtype, alphas: Tensor, sigmas: Tensor, first: int):
        self.predict, self.dtype, self.first = predict, dtype, first
        steps = coefficients(alphas[:-1], sigmas[:-1], alphas[1:], sigmas[1:])
        self.scale, self.end_scale, self.h, self.m = (c.tolist() for c in steps)
        self.m[0] = 0.0  # v starts at the first f

    def x(self, i: int, y: Tensor) -> Tensor:
        return (self.scale[i] * y).to(self.dtype)

    def velocity(self, i: int, y: Tensor) -> Tensor:
        x0, eps = self.predict(i, self.x(i, y))
        return (eps - x0).double()

    def step(self, i: int, y: Tensor, v: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
        v = (1 + self.m[i]) * f - self.m[i] * v
        return y + self.h[i] * v, v


class _Rewind(torch.autograd.Function):
    """(x_T, y, v, leaves) -> (y, v) at the last call: computed already, here with a gradient."""

    @staticmethod
    def forward(ctx: Any, chain: _Chain, x_T: Tensor, y: Tensor, v: Tensor, *leaves: Tensor) -> tuple[Tensor, Tensor]:
        ctx.chain, ctx.kind = chain, (x_T.dtype, x_T.requires_grad)
        ctx.save_for_backward(y, v, *leaves)
        return y.clone(), v.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor, gv: Tensor) -> Any:  # type: ignore[override]
        chain, (dtype, wanted) = ctx.chain, ctx.kind
        y, v, *leaves = ctx.saved_tensors
        totals: list[Tensor | None] = [None] * len(leaves)
        for i in reversed(range(chain.first, len(chain.h) - 1)):
            m, h = chain.m[i], chain.h[i]
            y = y - h * v
            gv = gv + h * gy
            with torch.enable_grad():
                start = y.detach().requires_grad_()
                f = chain.velocity(i, start)
            found = torch.autograd.grad(f, [start, *leaves], (1 + m) * gv, allow_unused=True)
            gy = gy if found[0] is None else gy + found[0]
            totals = [_added(*pair) for pair in zip(totals, found[1:], strict=True)]
            if i > 0:
                v = ((1 + m) * f.detach() - v) / m
            gv = -m * gv
        return None, (gy / chain.scale[0]).to(dtype) if wanted else None, None, None, *totals


def _added(total: Tensor | None, new: Tensor | None) -> Tensor | None:
    return new if total is None else total if new is None else total + new


def rewind(
    predict: Predict, last: Predict, x_T: Tensor, alphas: Tensor, sigmas: Tensor, kept: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    """x_T (B, ...) along a grid's coefficients (N + 1,) by `Leapfrog`'s steps -> (x_end, x0_hat), with their graph.

    predict: each call, without recomputation; last: the last call, recomputed or not. kept: which calls carry gradient.
    Raises RuntimeError in the backward pass where a parameter was changed meanwhile.
    """
    end, moves = len(kept) - 1, x_T.requires_grad
    chain = _Chain(predict, x_T.dtype, alphas, sigmas, first=0 if moves else list(kept).index(True))
    y = x_T.double() / chain.scale[0]
    if end > 0:
        y, leaves = y.detach(), {}
        v = torch.zeros_like(y)
        for i in range(end):
            y, v = chain.step(i, y, v, _observed(chain, i, y, kept[i], leaves))
        if leaves or moves:
            y, v = _Rewind.apply(chain, x_T, y, v, *leaves.values())  # type: ignore[misc]
    else:
        v = torch.zeros_like(y)
    x0, eps = last(end, chain.x(end, y))
    y, v = chain.step(end, y, v, (eps - x0).double())
    return (chain.end_scale[end] * y).to(x_T.dtype), x0


def _observed(chain: _Chain, i: int, y: Tensor, kept: bool, leaves: dict[int, Tensor]) -> Tensor:
    """f at call i, without graph. A kept call is made with one that keeps no tensor, to see which leaves it depends on,
    and so that whoever counts calls with gradient counts it."""
    if not kept:
        with torch.no_grad():
            return chain.velocity(i, y)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_forgotten, _forgotten):
        f = chain.velocity(i, y)
    _collect(f.grad_fn, leaves)
    return f.detach()


def _forgotten(_: Any) -> Any:
    """What is kept for a tensor that the graph would keep: nothing."""


def _collect(node: Any, leaves: dict[int, Tensor]) -> None:
    """Adds the leaves that the graph below `node` ends in."""
    seen, waiting = set(), [node]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            leaves[id(leaf)] = leaf
        waiting += [below for below, _ in node.next_functions]
