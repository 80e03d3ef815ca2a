"""Classifier-free guidance: when the unconditional model is asked, and how two outputs become one.

    out = out_u + w (out_c - out_u)          Ho & Salimans, arXiv 2207.12598; w = 1 is the conditional model alone

A guided denoiser is a denoiser again, valid for every prediction kind because `split` is linear in out. What depends on
the way so far (which rows still need out_u, the last difference) belongs to one trajectory: `begin` makes it anew, and
what it has decided is recorded, so that a checkpointed call that is made again decides the same.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from samplers.denoiser import Denoiser
from samplers.dynamic import choose
from samplers.prediction import Prediction, split
from samplers.scales import Guidance
from samplers.schedule import Schedule, broadcast

CfgGrad = Literal["both", "cond", "none"]
"""What of a guided output carries gradient; see `guide`."""
Judge = Callable[[Tensor], Tensor]
"""x0_hat (B, ...) of all rows -> (E, B), higher is better."""
TINY = 1e-8


@dataclass(frozen=True)
class _Guided:
    inner: Denoiser
    uncond: Any
    guidance: Guidance
    rescale: Callable[[Tensor, Tensor], Tensor] | None
    grad: CfgGrad
    negative: Denoiser | None = None
    judge: Judge | None = None

    @property
    def schedule(self) -> Schedule:
        return self.inner.schedule

    @property
    def kind(self) -> Prediction:
        return self.inner.kind

    def begin(self, times: Tensor) -> "Guided":
        """The guided calls of one trajectory along `times` (N + 1,)."""
        return Guided(self, times)

    def __call__(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        if self.guidance.of_trajectory:
            raise ValueError("this guidance knows its calls by their place in a trajectory: `begin` one")
        w = self.guidance.at(t)
        if t.ndim == 0:
            return self.inner(x_t, t, cond) if w == 1 else self.combined(*self.both(x_t, t, cond), float(w))
        return self.combined(*self.both(x_t, t, cond), broadcast(w, x_t))

    def both(self, x_t: Tensor, t: Tensor, cond: Any, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(out_u of `rows`, out_c of all), in one call if one network's; rows: (b,) numbers, or None for all."""
        uncond = self.uncond.repeat(len(cond)) if len(self.uncond) == 1 else self.uncond
        some = x_t if rows is None else x_t[rows]
        uncond = uncond if rows is None else uncond[rows]
        asked = t if t.ndim == 0 or rows is None else t[rows]
        if self.negative is not None:
            return self.negative(some, asked, uncond), self.inner(x_t, t, cond)
        times = t if t.ndim == 0 else torch.cat([asked, t])
        out = self.inner(torch.cat([some, x_t]), times, uncond.cat(cond))
        out_u, out_c = out.split([len(some), len(x_t)])
        return out_u, out_c

    def combined(self, out_u: Tensor, out_c: Tensor, w: float | Tensor) -> Tensor:
        """The guided output of rows that have both, with gradient as `grad` says."""
        u, c = (out_u, out_c) if self.grad == "both" else (out_u.detach(), out_c.detach())
        if self.guidance.zero_star:
            flat_u, flat_c = u.flatten(1).float(), c.flatten(1).float()
            u = u * broadcast((flat_u * flat_c).sum(1) / (flat_u.square().sum(1) + TINY), u)
        return self.carrying(self.finished(u + w * (c - u), c), out_c, w if self.grad == "cond" else 1.0)

    def carrying(self, out: Tensor, out_c: Tensor, gain: float | Tensor) -> Tensor:
        """The value of `out`; unless both branches carry gradient, with `gain` times that of out_c and no other: what
        zero_star, rescale and the family make of the two outputs are constants then."""
        return out if self.grad == "both" else out.detach() + gain * (out_c - out_c.detach())

    def finished(self, out: Tensor, out_c: Tensor) -> Tensor:
        """What is done to a guided output at the end."""
        if (phi := self.guidance.rescale) > 0:
            std, wanted = (o.flatten(1).float().std(1) for o in (out, out_c))
            out = broadcast(phi * wanted / std.clamp(min=TINY) + (1 - phi), out) * out
        return out if self.rescale is None else self.rescale(out, out_c)


@dataclass
class Guided:
    """The guided calls of one trajectory, by their number: `at(i)` is the denoiser of call i."""

    guided: _Guided
    times: Tensor
    on: Tensor | None = None
    """(B,) bool, adaptive: the rows that still ask out_u."""
    past: list[tuple[int, Tensor]] = field(default_factory=list)
    """(call, out_c - out_u) of the last two calls in full, without gradient."""
    record: dict[int, tuple[Tensor | None, Tensor | None]] = field(default_factory=dict)
    """Of each call made: the rows that were asked (None: all), and the difference that stood in for out_u's."""
    chosen: dict[int, Tensor] = field(default_factory=dict)
    """Dynamic: w (B,) of each call in full at which the judges were asked."""
    judged: Tensor | None = None
    """Dynamic: (E, B), what they said of the last choice."""

    def __post_init__(self) -> None:
        self.w = self.guided.guidance.along(self.times, self.guided.schedule)
        self.calls = [i for i, w in enumerate(self.w) if w != 1 and i >= self.guided.guidance.zero_init]

    def at(self, number: int) -> Callable[[Tensor, Tensor, Any], Tensor]:
        """(x_t, t, cond) -> out of call `number`. Made again, it repeats what it did."""
        return lambda x_t, t, cond: self._call(number, x_t, t, cond)

    def _call(self, number: int, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        guided, guidance, w = self.guided, self.guided.guidance, self.w[number]
        if number < guidance.zero_init:
            return torch.zeros_like(x_t)
        if w == 1:
            return guided.inner(x_t, t, cond)
        again = number in self.record
        rows, difference = self.record[number] if again else self._decide(number, x_t)
        self.record[number] = rows, difference
        if rows is not None and len(rows) == 0:
            out_c = guided.inner(x_t, t, cond)
            w = self._held(number, x_t)
            if difference is None:
                return out_c
            return guided.carrying(guided.finished(out_c + (w - 1) * difference, out_c), out_c, 1.0)
        out_u, out_c = guided.both(x_t, t, cond, rows)
        if not again:
            self._learn(number, x_t, t, rows, out_u, out_c)
        w = self._held(number, x_t)
        if rows is None:
            return guided.combined(out_u, out_c, w)
        return out_c.index_copy(0, rows, guided.combined(out_u, out_c[rows], w).to(out_c.dtype))

    def _decide(self, number: int, x_t: Tensor) -> tuple[Tensor | None, Tensor | None]:
        guidance, place = self.guided.guidance, self.calls.index(number)
        if guidance.skip == "adaptive":
            if self.on is None or x_t.device.type == "meta":  # without values none is known to be done
                return None, None
            return (None if bool(self.on.all()) else self.on.nonzero().flatten()), None
        in_full = {
            "none": True,
            "fraction": number < guidance.first,
            "refresh": place % guidance.every == 0,
        }[guidance.skip]
        if in_full:
            return None, None
        return torch.empty(0, dtype=torch.long, device=x_t.device), self._difference(number)

    def _difference(self, number: int) -> Tensor | None:
        reuse = self.guided.guidance.reuse
        if reuse == "none" or not self.past:
            return None
        last, newest = self.past[-1]
        if reuse == "delta" or len(self.past) < 2:
            return newest
        before, older = self.past[-2]
        return newest + (number - last) / (last - before) * (newest - older)

    def _held(self, number: int, x_t: Tensor) -> float | Tensor:
        """w of a call: that of the last choice up to it, or what was said beforehand."""
        known = [i for i in self.chosen if i <= number]
        return broadcast(self.chosen[max(known)], x_t) if known else self.w[number]

    def _choose(self, number: int, x_t: Tensor, t: Tensor, out_u: Tensor, out_c: Tensor) -> None:
        guided, w = self.guided, torch.tensor(self.guided.guidance.candidates, dtype=torch.float64)
        assert guided.judge is not None, "candidates without a judge"
        scores = []
        for scale in w.tolist():
            out = guided.combined(out_u, out_c, scale)
            scores.append(guided.judge(split(out, x_t, *guided.schedule(t), guided.kind)[0]))
        k, self.judged = choose(torch.stack(scores, 1), self.judged)
        self.chosen[number] = w.to(x_t.device)[k.to(x_t.device)]

    @torch.no_grad()
    def _learn(self, number: int, x_t: Tensor, t: Tensor, rows: Tensor | None, out_u: Tensor, out_c: Tensor) -> None:
        guidance = self.guided.guidance
        if guidance.candidates and x_t.device.type != "meta" and self.calls.index(number) % guidance.judge_every == 0:
            self._choose(number, x_t, t, out_u, out_c)
        if guidance.reuse != "none":
            self.past = [*self.past[-1:], (number, (out_c - out_u).detach())]
        if guidance.skip != "adaptive" or x_t.device.type == "meta":
            return
        place = torch.arange(len(x_t), device=x_t.device) if rows is None else rows
        some, times = x_t[place], t if t.ndim == 0 else t[place]
        a, b = (self._space(out, some, times).flatten(1).float() for out in (out_u, out_c[place]))
        still = torch.nn.functional.cosine_similarity(a, b) < guidance.gamma
        on = torch.ones(len(x_t), dtype=torch.bool, device=x_t.device) if self.on is None else self.on
        self.on = on.index_copy(0, place, still)

    def _space(self, out: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.guided.schedule(t)
        x0, eps = split(out, x_t, alpha, sigma, self.guided.kind)
        if self.guided.guidance.space == "x0":
            return x0
        return broadcast(alpha, x_t) * eps - broadcast(sigma, x_t) * x0


def guide(
    denoiser: Denoiser,
    uncond: Any,
    guidance: Guidance,
    *,
    rescale: Callable[[Tensor, Tensor], Tensor] | None = None,
    grad: CfgGrad = "both",
    negative: Denoiser | None = None,
    judge: Judge | None = None,
) -> Denoiser:
    """`denoiser` under `guidance`; `uncond` is a Cond of B rows, or of one row for all.

    A scale of 1 returns `denoiser` itself: the formula at 1. rescale: (out, out_c) -> out, what a family does to a
    guided output, such as to keep the norm of out_c. grad: "both" branches carry gradient; "cond" alone, so that it is
    w times that of out_c (as Flow-GRPO trains); or that of out_c alone, as if there were no guidance ("none"); also
    under zero_star and any rescale, whose factors are constants then. Values are the same. negative: what gives out_u
    in place of `denoiser` (NPO, autoguidance), in a call of its own. judge: of dynamic guidance, asked without
    gradient.
    """
    if guidance.scale == 1 and not (guidance.zero_init or guidance.plus_plus or guidance.candidates):
        return denoiser
    return _Guided(denoiser, uncond, guidance, rescale, grad, negative, judge)


def cfg(
    denoiser: Denoiser,
    uncond: Any,
    scale: float,
    *,
    interval: tuple[float, float] = (0.0, 1.0),
    rescale: Callable[[Tensor, Tensor], Tensor] | None = None,
    grad: CfgGrad = "both",
) -> Denoiser:
    """Plain guidance: `guide` with this scale within this interval of t, outside of which the conditional model runs
    alone, at half the cost."""
    return guide(denoiser, uncond, Guidance(scale=scale, interval=interval), rescale=rescale, grad=grad)
