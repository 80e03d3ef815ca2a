"""How typical noise is of N(0, I): the regularisers of noise optimisation, as log-densities up to a constant.

radial     K(x) = (d - 1) log|x| - |x|^2/2

    the log-density of |x| for x ~ N(0, I_d), greatest at |x| = sqrt(d - 1): Eyring et al. (ReNO), arXiv 2406.04312,
    eq. 5. It sees the length of x and nothing else.

structure  S(x) = E_P[ log p1(M1) + log p2(M2) ],   P x cut into m vectors z_i of k numbers, P a permutation

    M1 = |mean_i z_i|                   p1 = min(1, 2 exp(-m M1^2/(2k)))
    M2 = |mean_i z_i z_i' - I|_2        p2 = min(1, 2 exp(-m max(0, sqrt(1 + M2) - 1 - sqrt(k/m))^2/2))

    bounds on the probability that noise has such a mean, or such a covariance: Tang et al. (DNO), arXiv 2405.18881,
    section 4. 0, with no gradient, for noise that is typical; below 0 for noise with a mean or with correlations. The
    first arrangement is the natural one, in which the z_i are neighbours along a row; the others are drawn.
"""

import math

import torch
from torch import Tensor


def radial(x: Tensor) -> Tensor:
    """(B, ...) -> K, (B,); the norm in float32 or wider (fp16 overflows at d > 65504)."""
    square = x.to(torch.promote_types(x.dtype, torch.float32)).flatten(1).square().sum(1)
    return 0.5 * ((x[0].numel() - 1) * square.log() - square)


def structure(
    x: Tensor, generator: torch.Generator | None = None, *, block: int = 4, num_permutations: int = 100
) -> Tensor:
    """(B, ...) -> S, (B,), the mean over the natural arrangement and `num_permutations` drawn from `generator`.

    All rows share the permutations. `block` is k; what is left over at the end of an arrangement is not looked at.
    """
    flat = x.to(torch.promote_types(x.dtype, torch.float32)).flatten(1)
    dims = flat.shape[1]
    drawn = [torch.randperm(dims, generator=generator) for _ in range(num_permutations)]
    order = torch.stack([torch.arange(dims), *drawn]).to(x.device)
    count = dims // block
    z = flat[:, order[:, : count * block]].unflatten(-1, (count, block))  # (B, P, m, k)
    mean = z.mean(2).square().sum(-1)
    eye = torch.eye(block, dtype=z.dtype, device=z.device)
    covariance = torch.linalg.eigvalsh(z.mT @ z / count - eye).abs().amax(-1)
    excess = ((1 + covariance).sqrt() - 1 - math.sqrt(block / count)).clamp(min=0)
    log_p1 = (math.log(2) - count * mean / (2 * block)).clamp(max=0)
    log_p2 = (math.log(2) - count * excess.square() / 2).clamp(max=0)
    return (log_p1 + log_p2).mean(1)
