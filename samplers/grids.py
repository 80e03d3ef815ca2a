"""Where a sampler stops: the times t_0 > t_1 > ... > t_N of a rollout. Grids belong to the step rule.

The same words (leading, trailing, linspace) name different times in different diffusers schedulers, so each rule has
its own function here: `grids.ddim`, `grids.euler` (also Euler ancestral and Heun), `grids.dpmpp`, `grids.lcm`. Table
index i is t = (i + 1)/T; for T = 1000, N = 20 and offset 1 "leading" starts at i = 951 for DDIM and Euler, at 941 for
DPM-Solver++. Spacings: Lin et al., arXiv 2305.08891, table 2.

Grids are float64 CPU tensors: see `samplers.schedule`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from samplers.schedule import VPSchedule, shift

SPACINGS = ("leading", "trailing", "linspace")


class Grid(NamedTuple):
    """times: (N + 1,), from noise to data; init_scale multiplies standard normal noise to give x_T.

    init_scale is sigma_T for Euler's trailing and linspace grids (k-diffusion starts from sigma_max eps without data),
    else 1.
    """

    times: Tensor
    init_scale: float = 1.0


def ddim(
    schedule: VPSchedule, num_steps: int, spacing: str = "leading", *, offset: int = 0, ends_at_zero: bool = True
) -> Grid:
    """DDIMScheduler's times; `offset` is its steps_offset, and `ends_at_zero` its set_alpha_to_one.

    Without it the grid ends at table index 0, t = 1/T. diffusers steps from i to i - T//N and not to the next time of
    its list; the two agree for leading at every N, and for trailing when N divides T. Elsewhere we chain.
    """
    total = _check(schedule, num_steps)
    if spacing == "leading":
        index = _arange(num_steps).flip(0) * (total // num_steps) + offset
    elif spacing == "trailing":
        index = _trailing(total, num_steps)
    elif spacing == "linspace":
        index = _linspace(0, total - 1, num_steps).round().flip(0)
    else:
        raise _unknown(spacing)
    return Grid(_times(schedule, index, end=-1 if ends_at_zero else 0))


def euler(schedule: VPSchedule, num_steps: int, spacing: str = "leading", *, offset: int = 0) -> Grid:
    """EulerDiscreteScheduler's and EulerAncestralDiscreteScheduler's times, ending at t = 0."""
    total = _check(schedule, num_steps)
    if spacing == "leading":
        return ddim(schedule, num_steps, "leading", offset=offset)
    if spacing == "trailing":
        index = _trailing(total, num_steps)
    elif spacing == "linspace":
        index = _linspace(0, total - 1, num_steps).flip(0)  # not rounded: the table is interpolated
    else:
        raise _unknown(spacing)
    times = _times(schedule, index, end=-1)
    return Grid(times, init_scale=float(schedule(times[0])[1]))


def dpmpp(schedule: VPSchedule, num_steps: int, spacing: str = "leading", *, offset: int = 0) -> Grid:
    """DPMSolverMultistepScheduler's times, ending at t = 0 (its final_sigmas_type "zero")."""
    total = _check(schedule, num_steps)
    if spacing == "leading":
        index = _arange(num_steps + 1).flip(0)[:-1] * (total // (num_steps + 1)) + offset
    elif spacing == "trailing":
        index = _trailing(total, num_steps)
    elif spacing == "linspace":
        index = _linspace(0, total - 1, num_steps + 1).round().flip(0)[:-1]
    else:
        raise _unknown(spacing)
    return Grid(_times(schedule, index, end=-1))


def lcm(schedule: VPSchedule, num_steps: int, *, original_steps: int = 50) -> Grid:
    """LCMScheduler's times: `num_steps` of the `original_steps` evenly spaced levels of the distillation."""
    total = _check(schedule, num_steps)
    if num_steps > original_steps:
        raise ValueError(f"num_steps={num_steps} exceeds the {original_steps} steps that an LCM is distilled for")
    levels = ((_arange(original_steps) + 1) * (total // original_steps) - 1).flip(0)
    chosen = (_arange(num_steps) * original_steps / num_steps).floor().long()
    return Grid(_times(schedule, levels[chosen], end=-1))


def karras(schedule: VPSchedule, grid: Grid, *, rho: float = 7.0) -> Grid:
    """The same ends and number of steps, rho-spaced in sigma/alpha: Karras et al., arXiv 2206.00364, eq. 5."""
    alpha, sigma = schedule(grid.times[:-1])
    ratio = sigma / alpha
    if not bool(ratio.isfinite().all()):
        raise ValueError("a Karras grid needs a finite sigma/alpha at its start: not with zero terminal SNR at t = 1")
    ramp = torch.linspace(0, 1, len(ratio), dtype=torch.float64)
    high, low = ratio[0] ** (1 / rho), ratio[-1] ** (1 / rho)
    times = schedule.time_of_ratio((high + ramp * (low - high)) ** rho)
    return Grid(torch.cat([times, grid.times[-1:]]), grid.init_scale)


def flow(num_steps: int, *, factor: float = 1.0, end: float | None = None) -> Grid:
    """Linear times from 1 to `end` (default 1/N: FLUX's), then `shift`ed by `factor`, then 0."""
    linear = _linspace(1, 1 / num_steps if end is None else end, num_steps)
    return Grid(torch.cat([shift(linear, factor), linear.new_zeros(1)]))


def flow_twice_shifted(num_steps: int, *, factor: float = 3.0, num_train: int = 1000) -> Grid:
    """SD3's times as diffusers takes them: the smallest time, 1/T, is shifted before the spacing and again after."""
    return flow(num_steps, factor=factor, end=float(shift(torch.tensor(1 / num_train, dtype=torch.float64), factor)))


def doubled(grid: Grid) -> Grid:
    """Every time twice but the first, and t = 0 where no network is called: what `Heun` walks along."""
    times = grid.times.repeat_interleave(2)[1:]
    return Grid(times[:-1] if grid.times[-1] == 0 else times, grid.init_scale)


def _trailing(total: int, num_steps: int) -> Tensor:
    return (total - _arange(num_steps) * (total / num_steps)).round() - 1


def _times(schedule: VPSchedule, index: Tensor, *, end: int) -> Tensor:
    return schedule.time(torch.cat([index, index.new_full((1,), end)]))


def _arange(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.float64)


def _linspace(first: float, last: float, count: int) -> Tensor:
    # As numpy.linspace computes it: where a time is halfway between two entries its rounding depends on the last bit.
    times = first + _arange(count) * ((last - first) / max(count - 1, 1))
    if count > 1:
        times[-1] = last
    return times


def _check(schedule: VPSchedule, num_steps: int) -> int:
    if not 1 <= num_steps <= schedule.num_train:
        raise ValueError(f"num_steps={num_steps} must be between 1 and the schedule's {schedule.num_train} levels")
    return schedule.num_train


def _unknown(spacing: str) -> ValueError:
    return ValueError(f"spacing {spacing!r} is not known: use one of {', '.join(SPACINGS)}")
