"""Noise laws: how much of a step's noise is fresh. Every stochastic step in use is one line and a choice of (std, c):

    x_s = alpha_s x0_hat + c eps_hat + std z,     z ~ N(0, I)

    ddim(eta)         std = eta (sigma_s/sigma_t) sqrt(sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2)
                      c   = sqrt(sigma_s^2 - std^2)
    cps(a)            std = sigma_s sin(a pi/2),                 c = sqrt(sigma_s^2 - std^2)
    flow_sde(a)       std = g sqrt(h),  g^2 = a^2 t/(1 - t),     c = s - std^2/(2 t)
    dance_sde(eta)    std = eta sqrt(h),  g constant,            c = s - std^2/(2 t)

DDIM: Song et al., arXiv 2010.02502, eq. 16. CPS, coefficient-preserving sampling: Wang & Yu, arXiv 2509.05952.
Flow-SDE: Liu et al. (Flow-GRPO), arXiv 2505.05470, a = 0.7. Dance-SDE: Xue et al. (DanceGRPO), arXiv 2505.07818, 0.3.

The last two are Euler-Maruyama steps of an SDE on a rectified flow, h = t - s. On any other schedule they are taken
in x/(alpha + sigma), which is a flow of time tau = sigma/(alpha + sigma). They leave noise in the image: c^2 + std^2
exceeds sigma_s^2 by std^2 (1 - s/t) + std^4/(4 t^2). The first two leave none. ddim(1) is the memoryless law, which
flow_sde at a = sqrt(2) tends to as h -> 0.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from samplers.ddim import ancestral_std
from samplers.schedule import broadcast
from samplers.transition import StepRule, Transition

Law = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(alpha_t, sigma_t, alpha_s, sigma_s), each () or (B,) -> (std, c), of the same shape."""


def ddim_law(eta: float = 1.0) -> Law:
    """The law of the `ddim` step; eta in [0, 1], 1 is the posterior of DDPM."""

    def law(alpha_t: Tensor, sigma_t: Tensor, alpha_s: Tensor, sigma_s: Tensor) -> tuple[Tensor, Tensor]:
        if eta == 0:  # defined at sigma_t = 0 too
            return torch.zeros_like(sigma_s), sigma_s
        std = eta * ancestral_std(alpha_t, sigma_t, alpha_s, sigma_s)
        return std, (sigma_s**2 - std**2).clamp(min=0).sqrt()

    return law


def cps_law(a: float = 0.8) -> Law:
    """A fixed share of the noise at s is fresh, whatever the step's length; a in [0, 1]."""
    fresh, kept = math.sin(a * math.pi / 2), math.cos(a * math.pi / 2)
    return lambda alpha_t, sigma_t, alpha_s, sigma_s: (fresh * sigma_s, kept * sigma_s)


def flow_sde_law(a: float = 0.7) -> Law:
    """g^2 = a^2 t/(1 - t). It is infinite at t = 1, where the first step's own s stands for t in 1 - t, as released."""

    def variance_rate(t: Tensor, s: Tensor) -> Tensor:
        return a**2 * t / (1 - torch.where(t >= 1, s, t))

    return _sde(variance_rate)


def dance_sde_law(eta: float = 0.3) -> Law:
    """g = eta at every t."""
    return _sde(lambda t, s: torch.full_like(t, eta**2))


LAWS: dict[str, Callable[[float], Law]] = {
    "ddim": ddim_law,
    "cps": cps_law,
    "flow_sde": flow_sde_law,
    "dance_sde": dance_sde_law,
}
"""Name -> the law at a noise level."""
LEVELS = {"ddim": 1.0, "cps": 0.8, "flow_sde": 0.7, "dance_sde": 0.3}
"""Name -> the noise level that it was published with."""


def flow_time(alpha: Tensor, sigma: Tensor) -> Tensor:
    """tau = sigma/(alpha + sigma), the time of the flow that x/(alpha + sigma) is; t itself on a rectified flow."""
    return sigma / (alpha + sigma)


def noisy(law: Law) -> StepRule:
    """The step rule of a law; `noisy(ddim_law(eta))` is `ddim` with that eta."""

    def step(x0: Tensor, eps: Tensor, alpha_t: Tensor, sigma_t: Tensor, alpha_s: Tensor, sigma_s: Tensor) -> Transition:
        std, c = law(alpha_t, sigma_t, alpha_s, sigma_s)
        return Transition(broadcast(alpha_s, x0) * x0 + broadcast(c, eps) * eps, std)

    return step


def _sde(variance_rate: Callable[[Tensor, Tensor], Tensor]) -> Law:
    """Euler-Maruyama of dx = (v + g^2 eps/(2 t)) dt + g dw in flow time, g^2 = variance_rate(t, s)."""

    def law(alpha_t: Tensor, sigma_t: Tensor, alpha_s: Tensor, sigma_s: Tensor) -> tuple[Tensor, Tensor]:
        t, s, size = flow_time(alpha_t, sigma_t), flow_time(alpha_s, sigma_s), alpha_s + sigma_s
        variance = variance_rate(t, s) * (t - s)
        return size * variance.sqrt(), size * (s - variance / (2 * t))

    return law
