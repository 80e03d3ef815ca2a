"""Which attribute each image of a batch is to have, so that their distribution is a given one with the least change.

    T_ic = P(image i is given class c),    over class labels drawn from the target and assigned at the least cost
    cost of giving i class c: |p_i - onehot(c)|;     target y_i = argmax_c T_ic;     uncertainty u_i = 1 - max_c T_ic

Shen et al., arXiv 2311.07604, section 4.1. With two classes an assignment at the least cost orders the images: rank i
of M by p(class 1), counted from 0, is class 1 where the number of class 0, K0 ~ Bin(M, q0), is at most i. So

    T_i1 = F(i; M, q0)        the binomial distribution function, q0 the target share of class 0

exactly, and the lower share q0 of the ranks is given class 0. The released code has the shares the other way round away
from one half. For more classes T is the mean over drawn label sets, each assigned exactly.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def expected(p: Tensor, shares: Sequence[float], generator: torch.Generator, *, num_draws: int = 100) -> Tensor:
    """T (M, C) float64, rows sum to 1. p: (M, C) class probabilities; shares: C target shares that sum to 1;
    num_draws: label sets, for more than two classes."""
    p = p.double().cpu()
    return _by_ranks(p, shares[0]) if len(shares) == 2 else by_draws(p, shares, generator, num_draws)


def _by_ranks(p: Tensor, share: float) -> Tensor:
    """Two classes, exactly; `share` is that of class 0."""
    ranks = torch.empty(len(p), dtype=torch.long)
    ranks[p[:, 1].sort(stable=True).indices] = torch.arange(len(p))
    one = binomial(len(p), share)[ranks]
    return torch.stack([1 - one, one], 1)


def binomial(count: int, share: float) -> Tensor:
    """F(i; count, share) = P(K <= i) for i = 0..count - 1, (count,) float64."""
    k, n = torch.arange(count + 1, dtype=torch.float64), torch.tensor(float(count), dtype=torch.float64)
    q = torch.tensor(share, dtype=torch.float64)
    ways = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    mass = (ways + torch.xlogy(k, q) + torch.xlogy(n - k, 1 - q)).exp()
    return mass.cumsum(0)[:count].clamp(max=1)


def by_draws(p: Tensor, shares: Sequence[float], generator: torch.Generator, num_draws: int) -> Tensor:
    """Any number of classes: the mean of so many exact assignments, each of a set of labels drawn from the shares."""
    from scipy.optimize import linear_sum_assignment

    weights, total = torch.tensor(list(shares), dtype=torch.float64), torch.zeros_like(p)
    distance = (p[:, None] - torch.eye(len(weights), dtype=torch.float64)).norm(dim=-1)  # (M, C)
    for _ in range(num_draws):
        labels = torch.multinomial(weights, len(p), replacement=True, generator=generator)
        rows, columns = (torch.as_tensor(found) for found in linear_sum_assignment(distance[:, labels].numpy()))
        total[rows, labels[columns]] += 1
    return total / num_draws
