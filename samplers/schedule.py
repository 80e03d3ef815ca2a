"""Noise schedules: x_t = alpha_t x0 + sigma_t eps, from t = 0 (data) to t = 1 (noise).

    VP table   alpha_t^2 + sigma_t^2 = 1, table index i <-> t = (i + 1)/T; t = 0 is clean data.
               Between two entries the ratio sigma/alpha is interpolated linearly in t, which is what Euler and
               DPM-Solver++ in diffusers (and k-diffusion before them) do.
    flow       alpha_t = 1 - t, sigma_t = t  (rectified flow, Liu et al., arXiv 2209.03003).

alpha_t is not alpha-bar: diffusers' `alphas_cumprod` is alpha_t squared.

Schedules compute in float64 on the device of t. The grids of a rollout stay on the CPU, so its coefficients are
0-dim CPU tensors: they mix with tensors on any device, promote nothing, and never make the host wait.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor


class Schedule(Protocol):
    """t -> (alpha_t, sigma_t): `VPSchedule`, `FlowSchedule`, or any callable of this form."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """t in [0, 1], any shape -> (alpha_t, sigma_t), the shape of t, float64."""
        ...


class FlowSchedule:
    """Rectified flow: alpha_t = 1 - t, sigma_t = t. A shift moves the times of a grid, not this line: see `shift`."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.double()
        return 1 - t, t


class VPSchedule:
    """A variance-preserving table of `num_train` noise levels, as diffusers schedulers store it.

    `alphas_cumprod`: (T,), strictly decreasing, alpha_t^2 in [0, 1]. A last entry of exactly 0 is zero terminal SNR.
    """

    def __init__(self, alphas_cumprod: Tensor):
        squares = alphas_cumprod.double().cpu()
        if squares.ndim != 1 or not bool((squares[1:] < squares[:-1]).all()) or not 0 <= squares[-1] <= squares[0] < 1:
            raise ValueError("alphas_cumprod must be a strictly decreasing vector within [0, 1)")
        self.num_train = len(squares)
        ratio = ((1 - squares) / squares).sqrt()
        self._ratio = {torch.device("cpu"): torch.cat([ratio.new_zeros(1), ratio])}  # entry k is t = k/T

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        table = self._table(t.device)
        position = self.index(t) + 1
        low = position.floor().clamp(0, self.num_train - 1)
        weight = position - low
        below, above = table[low.long()], table[low.long() + 1]
        # Towards an infinite last entry (zero terminal SNR) it is alpha/sigma that falls linearly, to 0.
        ratio = torch.where(above.isinf(), below / (1 - weight), torch.lerp(below, above, weight))
        return (1 + ratio**2).rsqrt(), (1 + ratio**-2).rsqrt()

    def index(self, t: Tensor) -> Tensor:
        """t in [0, 1] -> the table position t T - 1 in [-1, T - 1], float64; an integer exactly when t is on the table.

        This is the number that a network's time embedding takes (diffusers' `timestep`).
        """
        position = t.double() * self.num_train - 1
        nearest = position.round()
        # Absorbs a t that went through float32, whose spacing below 1 is 6e-8.
        if position.requires_grad:  # the same value, with the gradient of t
            nearest = position + (nearest - position).detach()
        return torch.where((position - nearest).abs() < 1.5e-7 * self.num_train, nearest, position)

    def time(self, index: Tensor | Sequence[float]) -> Tensor:
        """The inverse of `index`: table position in [-1, T - 1] -> t in [0, 1], float64."""
        return (torch.as_tensor(index, dtype=torch.float64) + 1) / self.num_train

    def time_of_ratio(self, ratio: Tensor) -> Tensor:
        """sigma/alpha, any shape, within the table's range -> t, float64: the inverse of the interpolation."""
        table = self._table(ratio.device)
        ratio = ratio.double()
        high = torch.searchsorted(table, ratio).clamp(1, self.num_train)
        below, above = table[high - 1], table[high]
        weight = torch.where(above.isinf(), 1 - below / ratio, (ratio - below) / (above - below))
        return (high - 1 + weight.clamp(0, 1)) / self.num_train

    def _table(self, device: torch.device) -> Tensor:
        if device not in self._ratio:
            self._ratio[device] = self._ratio[torch.device("cpu")].to(device)
        return self._ratio[device]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "VPSchedule":
        """The table of a diffusers scheduler config (`scheduler_config.json`), in float32 as the model saw it."""
        num_train = config.get("num_train_timesteps", 1000)
        kind = config.get("beta_schedule", "linear")
        start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
        if config.get("trained_betas") is not None:
            betas = torch.tensor(config["trained_betas"], dtype=torch.float32)
        elif kind == "linear":
            betas = torch.linspace(start, end, num_train)
        elif kind == "scaled_linear":
            betas = torch.linspace(start**0.5, end**0.5, num_train) ** 2
        elif kind == "squaredcos_cap_v2":
            betas = _cosine_betas(num_train)
        else:
            raise ValueError(
                f"beta_schedule {kind!r} is not known: use linear, scaled_linear, squaredcos_cap_v2 or trained_betas"
            )
        squares = (1 - betas).cumprod(0)
        return cls(zero_terminal_snr(squares) if config.get("rescale_betas_zero_snr", False) else squares)


def _cosine_betas(num_train: int) -> Tensor:
    """Nichol & Dhariwal (arXiv 2102.09672) eq. 17, with betas capped at 0.999. -> (T,)"""
    bar = [math.cos((k / num_train + 0.008) / 1.008 * math.pi / 2) ** 2 for k in range(num_train + 1)]
    return torch.tensor([min(1 - after / before, 0.999) for before, after in pairwise(bar)])


def zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """Shift and scale alpha_t so that alpha_T = 0 and the first entry stays. (T,) -> (T,)

    Algorithm 1 of Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", arXiv 2305.08891.
    """
    alphas = alphas_cumprod.sqrt()
    first, last = alphas[0], alphas[-1]
    return ((alphas - last) * first / (first - last)) ** 2


def shift(t: Tensor, factor: float) -> Tensor:
    """Move flow times towards noise: t -> factor t / (1 + (factor - 1) t). t in [0, 1], any shape.

    Esser et al. (SD3), arXiv 2403.03206, eq. 23; the factor is 3 for SD3 and `dynamic_shift(...)` for FLUX.
    """
    return factor * t / (1 + (factor - 1) * t)


def dynamic_shift(
    num_tokens: int,
    *,
    base_tokens: int = 256,
    max_tokens: int = 4096,
    base_shift: float = 0.5,
    max_shift: float = 1.15,
) -> float:
    """FLUX's shift factor e^mu, with mu linear in the number of image tokens (defaults: FLUX.1's scheduler config)."""
    slope = (max_shift - base_shift) / (max_tokens - base_tokens)
    return math.exp(base_shift + slope * (num_tokens - base_tokens))


def on_a_flow(alpha_t: Tensor, sigma_t: Tensor, alpha_s: Tensor, sigma_s: Tensor) -> bool:
    """Whether the step t -> s is a rectified flow's: alpha + sigma = 1 at both ends; coefficients are (). A VP table
    has that on data, and at pure noise where its terminal SNR is zero: both are ends of one step for all alone."""
    return all(bool((size - 1).detach().abs() < 1e-9) for size in (alpha_t + sigma_t, alpha_s + sigma_s))


def broadcast(coefficient: Tensor, x: Tensor) -> Tensor:
    """Ready to multiply x: (B,) -> (B, 1, ..., 1) in x's dtype and device; a 0-dim coefficient is left as it is."""
    if coefficient.ndim == 0:
        return coefficient
    return coefficient.to(x).reshape(-1, *[1] * (x.ndim - 1))


def add_noise(schedule: Schedule, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """alpha_t x0 + sigma_t eps. x0, eps: (B, ...); t: () or (B,), in [0, 1]. -> (B, ...)"""
    alpha_t, sigma_t = schedule(t)
    return broadcast(alpha_t, x0) * x0 + broadcast(sigma_t, x0) * eps
