"""A prediction type is a row (a, b): the network is trained so that out = a x0 + b eps.

With x_t = alpha_t x0 + sigma_t eps this is a 2x2 linear map, and `split` inverts it:

    [x_t]   [alpha_t  sigma_t] [x0 ]        x0  = (b x_t - sigma_t out)/det
    [out] = [   a        b   ] [eps]        eps = (alpha_t out - a x_t)/det,    det = alpha_t b - sigma_t a

Rows: epsilon (Ho et al., arXiv 2006.11239), sample (x0), v (Salimans & Ho, arXiv 2202.00512, appendix D),
flow (velocity eps - x0; Liu et al., arXiv 2209.03003).
"""

from enum import StrEnum

import torch
from torch import Tensor

from samplers.schedule import broadcast


class Prediction(StrEnum):
    """What a network predicts; the comment is its row (a, b)."""

    EPSILON = "epsilon"  # (0, 1)
    SAMPLE = "sample"  # (1, 0)
    V = "v"  # (-sigma_t, alpha_t)
    FLOW = "flow"  # (-1, 1)


def row(alpha_t: Tensor, sigma_t: Tensor, kind: Prediction) -> tuple[Tensor, Tensor]:
    """(a, b) with out = a x0 + b eps; shapes as alpha_t."""
    zero, one = torch.zeros_like(alpha_t), torch.ones_like(alpha_t)
    return {
        Prediction.EPSILON: (zero, one),
        Prediction.SAMPLE: (one, zero),
        Prediction.V: (-sigma_t, alpha_t),
        Prediction.FLOW: (-one, one),
    }[kind]


def split(out: Tensor, x_t: Tensor, alpha_t: Tensor, sigma_t: Tensor, kind: Prediction) -> tuple[Tensor, Tensor]:
    """Network output -> (x0, eps). out, x_t: (B, ...); alpha_t, sigma_t: () or (B,). -> both (B, ...)

    Infinite where a kind says nothing: EPSILON at alpha_t = 0 (zero terminal SNR), SAMPLE at sigma_t = 0.
    """
    return solve(out, x_t, alpha_t, sigma_t, row(alpha_t, sigma_t, kind), kind)


def solve(
    out: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, out_row: tuple[Tensor, Tensor], kind: Prediction
) -> tuple[Tensor, Tensor]:
    """(x0, eps) from x = alpha x0 + sigma eps and out = a x0 + b eps, where the two rows may belong to different times.

    Inversion needs that freedom: it holds x_s and the network's output at t. Shapes as in `split`.
    """
    a, b = out_row
    det = alpha * b - sigma * a
    x0 = out if kind is Prediction.SAMPLE else broadcast(b / det, x) * x - broadcast(sigma / det, x) * out
    eps = out if kind is Prediction.EPSILON else broadcast(alpha / det, x) * out - broadcast(a / det, x) * x
    return x0, eps


def target(x0: Tensor, eps: Tensor, alpha_t: Tensor, sigma_t: Tensor, kind: Prediction) -> Tensor:
    """What the network is regressed on: a x0 + b eps. x0, eps: (B, ...); alpha_t, sigma_t: () or (B,). -> (B, ...)"""
    if kind is Prediction.EPSILON:
        return eps
    if kind is Prediction.SAMPLE:
        return x0
    a, b = row(alpha_t, sigma_t, kind)
    return broadcast(a, x0) * x0 + broadcast(b, x0) * eps
