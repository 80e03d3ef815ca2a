"""DDIM: keep the two predictions, move the mixture from t to s, put back a share eta of the noise.

    x_s = alpha_s x0 + sqrt(sigma_s^2 - std^2) eps + std z
    std = eta (sigma_s/sigma_t) sqrt(sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2)

Song et al., "Denoising Diffusion Implicit Models", arXiv 2010.02502, eq. 12 and 16, written for any schedule.
eta = 0 is the deterministic sampler, and on a flow it is Euler's; eta = 1 is ancestral sampling (DDPM).
"""

import torch
from torch import Tensor

from samplers.schedule import broadcast
from samplers.transition import Transition


def ddim(
    x0: Tensor,
    eps: Tensor,
    alpha_t: Tensor,
    sigma_t: Tensor,
    alpha_s: Tensor,
    sigma_s: Tensor,
    *,
    eta: float = 0.0,
) -> Transition:
    """One DDIM step t -> s. x0, eps: (B, ...) predicted at t; alpha, sigma: () or (B,); eta in [0, 1]."""
    if eta == 0:  # exactly deterministic, and defined where q is 0/0 (a step from sigma_t = 0)
        std, direction = torch.zeros_like(sigma_s), sigma_s
    else:
        std = eta * ancestral_std(alpha_t, sigma_t, alpha_s, sigma_s)
        direction = (sigma_s**2 - std**2).clamp(min=0).sqrt()
    return Transition(broadcast(alpha_s, x0) * x0 + broadcast(direction, eps) * eps, std)


def ancestral_std(alpha_t: Tensor, sigma_t: Tensor, alpha_s: Tensor, sigma_s: Tensor) -> Tensor:
    """sigma_s sqrt(1 - q^2), q = (alpha_t sigma_s)/(alpha_s sigma_t): the posterior's std, in a form without 0/0.

    It is (sigma_s/sigma_t) sqrt(sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2), sigma_t taken out of the root. () or (B,).
    """
    q = (alpha_t * sigma_s) / (alpha_s * sigma_t)
    return sigma_s * (1 - q**2).clamp(min=0).sqrt()
