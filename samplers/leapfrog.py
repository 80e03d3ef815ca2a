"""Asynchronous leapfrog: a step rule that can be run backwards exactly, one network call a step, of order 2.

In y = x/(alpha + sigma), tau = sigma/(alpha + sigma) every schedule is a flow with dy/dtau = f = eps - x0. The state is
the pair (y, v), v the velocity that y was last moved by:

    v <- -m v + (1 + m) f(y_t)          y_s = y_t + h v          h = tau_s - tau_t,   v starts at the first f

and back:   y_t = y_s - h v,            v <- ((1 + m) f(y_t) - v)/m

Zhuang et al., MALI, arXiv 2102.04668, damped: their eta is (1 + m)/2. m = 1 is the leapfrog proper, whose second mode,
v against f, is not damped at all; in thin directions of the data (there dy/dtau = y/tau) it grows, and spoils images of
few steps. We take

    m = (1 - z)/(1 + z),   z = -h/tau_t in (0, 1]

with which both modes of dy/dtau = y/tau shrink alike, by sqrt(m), where the exact one shrinks by 1 - z. It is of order
2 still, since m -> 1 as steps get small, and a step to t = 0 has m = 0: DDIM's. What going back magnifies is the
product of 1/m, about (tau_first/tau_last)^2 of the network calls at any number of steps: thousands, for which float64
has digits (`samplers.rewind`) and float32 has not.
"""

import torch
from torch import Tensor

from samplers.schedule import broadcast
from samplers.transition import Transition


def coefficients(
    alpha_t: Tensor, sigma_t: Tensor, alpha_s: Tensor, sigma_s: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(alpha_t + sigma_t, alpha_s + sigma_s, h, m) of a step, shapes as alpha_t."""
    scale_t, scale_s = alpha_t + sigma_t, alpha_s + sigma_s
    tau_t = sigma_t / scale_t
    h = sigma_s / scale_s - tau_t
    z = -h / tau_t
    return scale_t, scale_s, h, (1 - z) / (1 + z)


class Leapfrog:
    """The rule of one trajectory: it remembers v."""

    def __init__(self) -> None:
        self.velocity: Tensor | None = None

    def __call__(
        self, x0: Tensor, eps: Tensor, alpha_t: Tensor, sigma_t: Tensor, alpha_s: Tensor, sigma_s: Tensor
    ) -> Transition:
        """One step t -> s. x0, eps: (B, ...) predicted at t; alpha, sigma: ()."""
        scale_t, scale_s, h, m = (broadcast(c, x0) for c in coefficients(alpha_t, sigma_t, alpha_s, sigma_s))
        f = eps - x0
        self.velocity = f if self.velocity is None else (1 + m) * f - m * self.velocity
        y = broadcast(alpha_t, x0) / scale_t * x0 + broadcast(sigma_t, x0) / scale_t * eps
        return Transition(scale_s * (y + h * self.velocity), torch.zeros_like(sigma_s))
