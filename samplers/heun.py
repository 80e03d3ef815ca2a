"""Heun: an Euler step, a second network call where it landed, and the mean of both directions. Order 2.

    predictor   x' = alpha_s x0_t + sigma_s eps_t
    corrector   x_s = x_t + (alpha_s - alpha_t)(x0_t + x0')/2 + (sigma_s - sigma_t)(eps_t + eps')/2

The corrector is the trapezoidal rule on dx = x0 dalpha + eps dsigma. On a flow it is Heun's method in t exactly
(diffusers' FlowMatchHeunDiscreteScheduler). On a VP table it differs at third order per step from EDM's Heun in
sigma/alpha (Karras et al., arXiv 2206.00364, algorithm 1), and unlike it stays finite where alpha_t = 0.

Every network call is one entry of the grid, so the grid holds each inner time twice (`grids.doubled`): the pair
(t, s) predicts, the pair (s, s) corrects. The last step, to t = 0 where no network can be called, is Euler's.
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
            raise ValueError("Heun needs a grid that holds every inner time twice: pass grids.doubled(grid)")
        if self.start is None:
            if not bool(sigma_s == 0):
                self.start = _Start(x0, eps, alpha_t, sigma_t)
            return ddim(x0, eps, alpha_t, sigma_t, alpha_s, sigma_s)
        start, self.start = self.start, None
        along_alpha, along_sigma = (alpha_s - start.alpha) / 2, (sigma_s - start.sigma) / 2
        mean = broadcast(start.alpha + along_alpha, x0) * start.x0 + broadcast(along_alpha, x0) * x0
        mean = mean + broadcast(start.sigma + along_sigma, x0) * start.eps + broadcast(along_sigma, x0) * eps
        return Transition(mean, torch.zeros_like(sigma_s))
