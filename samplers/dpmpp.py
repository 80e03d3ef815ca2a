"""DPM-Solver++ 2M: DDIM with the data prediction extrapolated from the last two. One network call a step, order 2.

    x_s = alpha_s x0 + sigma_s eps + (1/2r) alpha_s (1 - e^-h)(x0 - x0_prev)
    h = lambda_s - lambda_t,   r = h_prev/h,   lambda = log(alpha/sigma),   e^-h = (alpha_t sigma_s)/(alpha_s sigma_t)

Lu et al., "DPM-Solver++", arXiv 2211.01095, algorithm 2 (midpoint): its (sigma_s/sigma_t) x_t - alpha_s (e^-h - 1) D,
with x_t = alpha_t x0 + sigma_t eps and D = x0 + (x0 - x0_prev)/2r put in. The first step has no past, and a step to
sigma_s = 0 has h = inf: both are first order, as in diffusers.
"""

import torch
from torch import Tensor

from samplers.ddim import ddim
from samplers.schedule import broadcast
from samplers.transition import Transition


class DPMpp2M:
    """The rule of one trajectory: it remembers the last data prediction and the last h."""

    def __init__(self) -> None:
        self.previous: tuple[Tensor, Tensor] | None = None  # x0 (B, ...), h ()

    def __call__(
        self, x0: Tensor, eps: Tensor, alpha_t: Tensor, sigma_t: Tensor, alpha_s: Tensor, sigma_s: Tensor
    ) -> Transition:
        """One step t -> s. x0, eps: (B, ...) predicted at t; alpha, sigma: ()."""
        decay = (alpha_t * sigma_s) / (alpha_s * sigma_t)
        h = -decay.log()
        mean = ddim(x0, eps, alpha_t, sigma_t, alpha_s, sigma_s).mean
        if self.previous is not None and not bool(sigma_s == 0):
            x0_previous, h_previous = self.previous
            # h_previous is infinite after a step from alpha_t = 0: then r is too, and the past drops out.
            mean = mean + broadcast(alpha_s * (1 - decay) * h / (2 * h_previous), x0) * (x0 - x0_previous)
        self.previous = (x0, h)
        return Transition(mean, torch.zeros_like(sigma_s))
