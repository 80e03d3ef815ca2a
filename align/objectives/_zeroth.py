"""A gradient from values alone: how a loss changes along random directions.

    g = (1/n) sum_i [L(theta + mu z_i) - L(theta)]/mu z_i  /  sqrt((d + n - 1)/n),     z_i ~ N(0, I)

Without the root g is unbiased for small mu, and its square is (d + n + 1)/n times the gradient's: the root takes the
length back to about that (ZOODiP, Seo et al., arXiv 2503.14868, whose code divides so).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


@torch.no_grad()
def estimate(
    loss: Callable[[Tensor], Tensor], theta: Tensor, directions: Sequence[Tensor], mu: float
) -> tuple[Tensor, Tensor]:
    """(L(theta), g): loss maps theta to (B,), so g is (B, *theta.shape), a gradient of each row's."""
    base = loss(theta)
    total = torch.zeros(len(base), *theta.shape, device=base.device)
    for z in directions:
        slope = (loss(theta + mu * z) - base) / mu
        total += slope.view(-1, *[1] * theta.ndim) * z
    n = len(directions)
    return base, total / n / ((theta.numel() + n - 1) / n) ** 0.5


def surrogate(base: Tensor, gradient: Tensor, theta: Tensor) -> Tensor:
    """(B,): the values `base` with the gradients `gradient`, for whoever calls backward."""
    return base + ((theta - theta.detach()) * gradient).flatten(1).sum(1)
