"""Pure, unreduced formulas of losses: tensors in, (B,) out.

Preferences (Bradley & Terry 1952; Rafailov et al., "Direct Preference Optimization", arXiv 2305.18290, eq. 7). With

    z = log_ratio_w - log_ratio_l,   log_ratio_y = log p_theta(y) - log p_ref(y)

    sigmoid   -log sigmoid(beta z)
    hinge     max(0, 1 - beta z)                  Zhao et al. (SLiC), arXiv 2305.10425
    ipo       (z - 1/(2 beta))^2                  Azar et al., arXiv 2310.12036, eq. 17

Labels of single images, w = +1 for a good one and -1 for a bad one (Li et al., "Aligning Diffusion Models by Optimizing
Human Utility" (Diffusion-KTO), arXiv 2404.04465), u = w beta (log_ratio - Q):

    kt             1 - sigmoid(u)                 Kahneman and Tversky: flat where much is won or lost
    risk_averse    -log sigmoid(u)
    risk_seeking   log sigmoid(-u)

Diffusion-DPO, SPO and Inversion-DPO differ in what they put in for log_ratio and share these lines. A log_ratio that is
a MEAN over the d numbers of a latent makes beta d times what a sum would need: see `Diffusion-DPO` in
align/objectives/diffusion_dpo.py for how the published conventions convert.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

DPOForm = Literal["sigmoid", "hinge", "ipo"]
Utility = Literal["kt", "risk_averse", "risk_seeking"]


def dpo(log_ratio_w: Tensor, log_ratio_l: Tensor, *, beta: float, form: DPOForm = "sigmoid") -> Tensor:
    """Loss of preferring w to l, (B,). log_ratio_w, log_ratio_l: (B,), policy against reference; beta > 0."""
    z = log_ratio_w - log_ratio_l
    if form == "sigmoid":
        return functional.softplus(-beta * z)
    if form == "hinge":
        return (1 - beta * z).relu()
    return (z - 1 / (2 * beta)).square()


def log_ratio_of_errors(error: Tensor, error_ref: Tensor) -> Tensor:
    """-(error - error_ref)/2: what squared errors say of log p_theta - log p_ref. (B,), (B,) -> (B,)

    Wallace et al., "Diffusion Model Alignment Using Direct Preference Optimization", arXiv 2311.12908, eq. 14; the
    factor T omega(lambda_t) is part of beta. With it d dpo/d error_w = beta/4 at error = error_ref.
    """
    return -0.5 * (error - error_ref)


def utility_loss(u: Tensor, utility: Utility = "kt") -> Tensor:
    """What a gain of u, in units of 1/beta, costs: (B,) -> (B,). All three fall as u rises; d/du at 0 is -1/4 for kt
    and -1/2 for the others."""
    if utility == "kt":
        return torch.sigmoid(-u)
    return functional.softplus(-u) if utility == "risk_averse" else -functional.softplus(u)


def clamped(log_ratio: Tensor, c: float | None) -> Tensor:
    """log clamp(exp(log_ratio), 1 - c, 1 + c): outside the band there is no gradient; c = None: no band."""
    if c is None:
        return log_ratio
    return log_ratio.clamp(math.log1p(-c), math.log1p(c))


def bradley_terry(score_a: Tensor, score_b: Tensor, p_a: Tensor) -> Tensor:
    """Cross-entropy of P(a preferred) = sigmoid(score_a - score_b) with the label p_a: 1, 0, or 1/2 for a tie. (B,)

    It is least where the two scores differ by logit(p_a): a tie pulls them together.
    """
    return functional.binary_cross_entropy_with_logits(score_a - score_b, p_a, reduction="none")


def guard_factor(gradient_w: Tensor, gradient_l: Tensor) -> Tensor:
    """f in [0, 1], the largest with <g_w, g_w - f g_l> >= 0, per sample: (B, ...), (B, ...) -> (B,)

    g_w, g_l: gradients of the winner's and the loser's error with respect to the outputs. A step along
    -(g_w - f g_l) then does not raise the winner's error to first order: f = min(1, |g_w|^2/<g_w, g_l>) where the two
    pull together, 1 where they do not.
    """
    inner = (gradient_w * gradient_l).flatten(1).sum(1)
    square = gradient_w.square().flatten(1).sum(1)
    return torch.where(inner > square, square / inner.clamp(min=torch.finfo(inner.dtype).tiny), torch.ones_like(inner))
