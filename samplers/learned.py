"""A step rule of given coefficients: each step goes by a mixture of all predictions so far.

    VP     x_s = (sigma_s/sigma_t) x_t + (alpha_s - sigma_s alpha_t/sigma_t) sum_j M_ij x0_hat_j
    flow   x_s = x_t + (s - t) sum_j M_ij v_j

Rows of M sum to 1; the identity is DDIM. Wang et al., "Differentiable Solver Search for Fast Diffusion Sampling", arXiv
2505.21114, eq. 19 in these symbols, finite at sigma_s = 0.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from samplers.schedule import broadcast, on_a_flow
from samplers.transition import Transition


def mixture(below: Tensor) -> Tensor:
    """The N (N - 1)/2 coefficients below the diagonal, row by row -> M (N, N), whose diagonal makes rows sum to 1."""
    n = round((1 + (1 + 8 * len(below)) ** 0.5) / 2)
    rows = below.split(list(range(n)))
    zeros = [below.new_zeros(n - 1 - i) for i in range(n)]
    return torch.stack([torch.cat([row, 1 - row.sum()[None], zero]) for row, zero in zip(rows, zeros, strict=True)])


def times_of(logits: Tensor, start: float, end: float) -> Tensor:
    """(N,) -> (N + 1,) falling from `start` to `end`, gaps in proportion to exp(logits)."""
    share = torch.softmax(logits.double(), 0).cumsum(0)
    return torch.cat([share.new_tensor([start]), start + (end - start) * share[:-1], share.new_tensor([end])])


class Learned:
    """The rule of one trajectory; M is its class's, set by `of`."""

    rows: Sequence[Tensor] = ()

    def __init__(self) -> None:
        self.history: list[Tensor] = []

    @classmethod
    def of(cls, matrix: Tensor) -> "type[Learned]":
        """The rule of M (N, N), for trajectories of N steps; its gradient reaches M."""
        return type(cls.__name__, (cls,), {"rows": tuple(matrix)})

    def __call__(
        self, x0: Tensor, eps: Tensor, alpha_t: Tensor, sigma_t: Tensor, alpha_s: Tensor, sigma_s: Tensor
    ) -> Transition:
        """One step t -> s. x0, eps: (B, ...) predicted at t; alpha, sigma: ()."""
        flow = on_a_flow(alpha_t, sigma_t, alpha_s, sigma_s)
        row = self.rows[len(self.history)]
        self.history.append(eps - x0 if flow else x0)
        mixed = sum((broadcast(c, x0) * f for c, f in zip(row, self.history, strict=False)), torch.zeros_like(x0))
        x_t = broadcast(alpha_t, x0) * x0 + broadcast(sigma_t, x0) * eps
        if flow:
            mean = x_t + broadcast(sigma_s - sigma_t, x0) * mixed
        else:
            mean = broadcast(sigma_s / sigma_t, x0) * x_t + broadcast(alpha_s - sigma_s * alpha_t / sigma_t, x0) * mixed
        return Transition(mean, torch.zeros_like(sigma_s.detach()))
