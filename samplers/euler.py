"""Euler: x_s = alpha_s x0 + sigma_s eps, the deterministic DDIM step. They differ by their grid, not by their step.

In k-diffusion's variables xbar = x/alpha, rho = sigma/alpha the ODE is dxbar/drho = eps (Karras et al.,
arXiv 2206.00364, eq. 1 with s = 1), and xbar_s = xbar_t + (rho_s - rho_t) eps = x0 + rho_s eps is the line above
divided by alpha_s. On a flow it is x_s = x_t + (s - t)(eps - x0).
"""

from torch import Tensor

from samplers.ddim import ddim
from samplers.transition import Transition


def euler(x0: Tensor, eps: Tensor, alpha_t: Tensor, sigma_t: Tensor, alpha_s: Tensor, sigma_s: Tensor) -> Transition:
    """One Euler step t -> s, deterministic. x0, eps: (B, ...); alpha, sigma: () or (B,)."""
    return ddim(x0, eps, alpha_t, sigma_t, alpha_s, sigma_s)
