"""Heun: an Euler step, a second network call where it landed, and the mean of both directions. Order 2.

In y = x/(alpha + sigma), tau = sigma/(alpha + sigma) every schedule is a flow, y = (1 - tau) x0 + tau eps with
dy/dtau = eps - x0, and h = tau_s - tau_t gives

    predictor   y' = y_t + h (eps_t - x0_t)                          the deterministic DDIM step
    corrector   y_s = y_t + h/2 ((eps_t - x0_t) + (eps' - x0'))

On a flow this is Heun's method in t (diffusers' FlowMatchHeunDiscreteScheduler). On a VP table it is not
HeunDiscreteScheduler, which works in sigma/alpha (Karras et al., arXiv 2206.00364, algorithm 1): both are of order 2,
this one has the smaller error on Gaussian data up to some 40 steps, and it stays finite where alpha_t = 0.

Every network call is one entry of the grid, so the grid holds each time twice (`grids.doubled`): the pair (t, s)
predicts, the pair (s, s) corrects. A step to t = 0, where no network can be called, is left at Euler's.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from samplers.ddim import ddim
from samplers.schedule import broadcast
from samplers.transition import Transition


class _Start(NamedTuple):
    x0: Tensor
    eps: Tensor
    alpha: Tensor
    sigma: Tensor


class Heun:
    """The rule of one trajectory: it remembers where the predictor started."""

    def __init__(self) -> None:
        self.start: _Start | None = None

    def __call__(
        self, x0: Tensor, eps: Tensor, alpha_t: Tensor, sigma_t: Tensor, alpha_s: Tensor, sigma_s: Tensor
    ) -> Transition:
        """Predict (s < t) or correct (s = t). x0, eps: (B, ...) predicted at t; alpha, sigma: ()."""
        corrects = bool(alpha_t == alpha_s) and bool(sigma_t == sigma_s)
        if corrects != (self.start is not None):
            raise ValueError("Heun needs a grid that holds every time twice: pass grids.doubled(grid)")
        if self.start is None:
            if not bool(sigma_s == 0):
                self.start = _Start(x0, eps, alpha_t, sigma_t)
            return ddim(x0, eps, alpha_t, sigma_t, alpha_s, sigma_s)
        start, self.start = self.start, None
        scale_t, scale_s = start.alpha + start.sigma, alpha_s + sigma_s
        half = (sigma_s / scale_s - start.sigma / scale_t) / 2
        y_x0, y_eps = start.alpha / scale_t - half, start.sigma / scale_t + half
        mean = broadcast(y_x0, x0) * start.x0 + broadcast(y_eps, x0) * start.eps
        mean = broadcast(scale_s, x0) * (mean + broadcast(half, x0) * (eps - x0))
        return Transition(mean, torch.zeros_like(sigma_s))
