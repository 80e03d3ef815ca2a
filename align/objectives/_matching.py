"""Pure, unreduced formulas of distribution matching: two scores compared at noised samples of a generator.

    x_tau = alpha x0 + sigma eps,  eps ~ N(0, I),     x0 the generator's sample, with graph
    s = -eps_hat/sigma: the score that a denoiser says;  `fake`: a denoiser of the generator's own samples

    kl       w < sg((eps_ref - eps_fake)/sigma), x_tau >      its gradient is that of KL(generator || reference)
    score    -w < d'(y), (eps - eps_fake)/sigma >,   y = (eps_ref - eps_fake)/sigma = s_fake - s_ref
             d'(y) = y/sqrt(mean y^2 + c^2)                       of the pseudo-Huber distance sqrt(mean y^2 + c^2) - c

Luo et al., Diff-Instruct, arXiv 2305.18455, and Diff-Instruct*, 2410.20898; Yin et al., DMD, arXiv 2311.18828. The
score form's gradient passes x_tau in y and in eps_fake, through both networks; that of a generator's scale is half of
what it should be where y is detached. It is the gradient with the law of x_tau held fixed.

< , > and |.|^2 are means over the dimensions of a sample.
"""

import torch
from torch import Tensor

from samplers import Prediction, broadcast, target


def mean(x: Tensor) -> Tensor:
    """(B, ...) -> (B,)"""
    return x.flatten(1).mean(1)


def kl_form(x_tau: Tensor, eps_ref: Tensor, eps_fake: Tensor, sigma: Tensor, weight: Tensor) -> Tensor:
    """(B,). x_tau with graph: (B, ...); eps_ref, eps_fake (B, ...), taken as constants; sigma, weight: (B,)."""
    direction = (eps_ref - eps_fake).detach() / broadcast(sigma, x_tau)
    return weight.to(x_tau) * mean(direction * x_tau)


def score_form(eps: Tensor, eps_ref: Tensor, eps_fake: Tensor, sigma: Tensor, weight: Tensor, c: float) -> Tensor:
    """(B,). eps_ref, eps_fake: (B, ...), with the graph of x_tau; eps: the noise; sigma, weight: (B,)."""
    sigma = broadcast(sigma, eps_fake)
    y = (eps_ref - eps_fake) / sigma
    size = (mean(y.square()) + c**2).sqrt()
    return -weight.to(y) * mean(y / broadcast(size, y) * (eps - eps_fake) / sigma)


def toward(x0: Tensor, direction: Tensor, size: Tensor, huber: float | None = None) -> Tensor:
    """(B,): the distance of x0 to sg(x0 + direction), over `size` (B,): |.|^2, or sqrt(|.|^2 + c^2) - c of each number
    with huber = c. Its gradient is -direction's, its value says how far there is to go."""
    gap = x0 - (x0 + direction).detach()
    apart = gap.square() if huber is None else (gap.square() + huber**2).sqrt() - huber
    return mean(apart) / size.clamp(min=1e-5)


def noisy_target(
    x_s: Tensor, eps: Tensor, at_s: tuple[Tensor, Tensor], at_tau: tuple[Tensor, Tensor], kind: Prediction
) -> tuple[Tensor, Tensor]:
    """(x_tau, u) of data that is itself noisy: x_s (B, ...) at the level `at_s` = (alpha, sigma), each (B,), noised on
    to `at_tau` by eps; u is the network's regression target there, exact in expectation.

        x_tau = a x_s + b eps,   a = alpha_tau/alpha_s,   b^2 = sigma_tau^2 - (a sigma_s)^2
        score at tau = E[-eps/b | x_tau],    so eps* = sigma_tau eps/b,
        x0* = x_s/alpha_s - alpha_tau (sigma_s/alpha_s)^2 eps/b
    """
    alpha_s, sigma_s = (c.double() for c in at_s)
    alpha, sigma = (c.double() for c in at_tau)
    a = alpha / alpha_s
    b = (sigma**2 - (a * sigma_s) ** 2).sqrt()
    x_tau = broadcast(a, x_s) * x_s + broadcast(b, x_s) * eps
    x0 = broadcast(1 / alpha_s, x_s) * x_s - broadcast(alpha * (sigma_s / alpha_s) ** 2 / b, x_s) * eps
    return x_tau, target(x0, broadcast(sigma / b, x_s) * eps, alpha, sigma, kind)


def min_snr(alpha: Tensor, sigma: Tensor, most: float = 5.0) -> Tensor:
    """min(alpha^2/sigma^2, most): the weight of an error of x0, as in Hang et al., arXiv 2303.09556. (B,) -> (B,)"""
    return (alpha / sigma).square().clamp(max=most)


def importance(low: Tensor, high: Tensor, chosen: Tensor) -> Tensor:
    """(B,): what makes times that are uniform on the interval [low_j, high_j] of a uniform step j count as if they were
    uniform over all intervals together; low, high: (K,), chosen: (B,) int64. Its mean over j is 1."""
    length = high - low
    return (length * len(length) / length.sum())[chosen]


def size(x: Tensor) -> Tensor:
    """mean |x|, (B, ...) -> (B,), without graph."""
    return mean(x.detach().abs())


def drawn_times(low: Tensor, high: Tensor, uniform: Tensor) -> Tensor:
    """(B,) float64 between `low` and `high`, both (B,); uniform: (B,) in [0, 1)."""
    return torch.lerp(low.double(), high.double(), uniform.double())
