"""What guidance does, as settings: its scale by time, which calls are made in full, how outputs are combined."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from samplers.schedule import Schedule


@dataclass(frozen=True)
class Guidance:
    """What `guide` does; the defaults are plain guidance at every step."""

    scale: float | Sequence[float] | Mapping[float, float] = 7.5
    """w; one a network call; or {t: w}, each from its t down to the next (the first t is 1)."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Times t between which guidance acts, bounds included: Kynkaanniemi et al., arXiv 2404.07724."""
    skip: Literal["none", "adaptive", "fraction", "refresh"] = "none"
    """Which guided calls leave out_u out. adaptive: a row's from the call after its cosine of the two outputs reached
    gamma (Castillo et al., arXiv 2312.12487); fraction: those after the first ones; refresh: all but each every-th."""
    gamma: float = 0.99
    """adaptive: the cosine that ends it; above 1 it never ends."""
    space: Literal["x0", "v"] = "x0"
    """adaptive: where the cosine is taken. That of eps is near 1 from the start, both outputs being mostly x_t."""
    first: int = 0
    """fraction: the first so many calls of a trajectory are made in full."""
    every: int = 2
    """refresh: out_u is asked at each every-th guided call."""
    reuse: Literal["none", "delta", "delta2"] = "none"
    """What stands for out_c - out_u where it is left out: nothing, so that out_c is taken; the last one; or that of the
    last two carried on in a line. Without gradient."""
    rescale: float = 0.0
    """phi of out <- phi out std(out_c)/std(out) + (1 - phi) out, per row: Lin et al., arXiv 2305.08891, eq. 15-16."""
    zero_star: bool = False
    """CFG-Zero*: out_u shortened to what of out_c lies along it, per row (Fan et al., arXiv 2503.18886, eq. 6)."""
    zero_init: int = 0
    """CFG-Zero*: the first so many calls stand still (out = 0, no network call); a flow's velocity only."""
    plus_plus: bool = False
    """CFG++ (Chung et al., arXiv 2406.08070): scale is its lambda in [0, 1]. Along deterministic first-order steps that
    is guidance at w = lambda / (1 - r), r = (sigma_s/alpha_s)/(sigma_t/alpha_t)."""

    candidates: tuple[float, ...] = ()
    """Dynamic: scales of which every `judge_every`-th guided call takes, per row, the one that judges prefer
    (samplers/dynamic.py); `scale` then only says whether there is guidance."""
    judge_every: int = 1

    @property
    def of_trajectory(self) -> bool:
        """Whether a call needs to know which of a trajectory's it is."""
        told = isinstance(self.scale, Sequence) or self.skip != "none" or self.zero_init > 0 or bool(self.candidates)
        return told or self.plus_plus

    def at(self, t: Tensor) -> Tensor:
        """w at times t, any shape, float64; 1 outside the interval. Not for scales that are told by call."""
        t = t.double()
        if isinstance(self.scale, Mapping):
            levels = sorted(self.scale)
            place = torch.searchsorted(torch.tensor(levels, dtype=torch.float64, device=t.device), t)
            values = torch.tensor([self.scale[level] for level in levels], dtype=torch.float64, device=t.device)
            w = values[place.clamp(max=len(levels) - 1)]
        else:
            w = torch.full_like(t, self.scale)  # type: ignore[arg-type]
        return torch.where(self._acts(t), w, torch.ones_like(w))

    def _acts(self, t: Tensor) -> Tensor:
        """Whether times t lie in the interval."""
        low, high = self.interval
        return (t >= low) & (t <= high)

    def along(self, times: Tensor, schedule: Schedule) -> list[float]:
        """w of each call of a trajectory, `times` (N + 1,) being its grid's."""
        calls, acts = len(times) - 1, self._acts(times[:-1])
        if isinstance(self.scale, Sequence):
            if len(self.scale) < calls:
                raise ValueError(f"{len(self.scale)} scales of guidance for {calls} network calls")
            w = torch.tensor(list(self.scale[:calls]), dtype=torch.float64)
            w = torch.where(acts, w, torch.ones_like(w))
        else:
            w = self.at(times[:-1])
        if self.plus_plus:
            alpha, sigma = schedule(times)
            r = (sigma[1:] * alpha[:-1]) / (alpha[1:] * sigma[:-1])
            w = torch.where(acts, w / (1 - r), w)  # by the interval: a lambda of 1 is guidance too
        return w.tolist()
