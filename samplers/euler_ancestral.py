"""Euler ancestral: step down to a lower noise level than s, then put noise back. It is DDIM with eta = 1.

k-diffusion (`get_ancestral_step`) with rho = sigma/alpha:

    rho_up^2 = eta^2 rho_s^2 (rho_t^2 - rho_s^2)/rho_t^2,     rho_down^2 = rho_s^2 - rho_up^2
    xbar_s = x0 + rho_down eps + rho_up z

Times alpha_s: alpha_s rho_up = eta sigma_s sqrt(1 - (rho_s/rho_t)^2) is DDIM's std and alpha_s rho_down its direction.
What is left of the sampler is its default eta and its grid (`grids.euler`).
"""

from torch import Tensor

from samplers.ddim import ddim
from samplers.transition import Transition


def euler_ancestral(
    x0: Tensor,
    eps: Tensor,
    alpha_t: Tensor,
    sigma_t: Tensor,
    alpha_s: Tensor,
    sigma_s: Tensor,
    *,
    eta: float = 1.0,
) -> Transition:
    """One ancestral step t -> s. x0, eps: (B, ...); alpha, sigma: () or (B,); eta in [0, 1]."""
    return ddim(x0, eps, alpha_t, sigma_t, alpha_s, sigma_s, eta=eta)
