"""One step t -> s of a sampler, as a Gaussian: x_s ~ N(mean, std^2 I).  std = 0 is a deterministic step."""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from samplers.schedule import broadcast


@dataclass(frozen=True)
class Transition:
    """mean: (B, ...), the shape of the latents; std: () or (B,), >= 0."""

    mean: Tensor
    std: Tensor

    @property
    def deterministic(self) -> bool:
        """Whether std is 0 for every row. Free for a rollout's transitions, whose std lives on the CPU."""
        return not bool(torch.count_nonzero(self.std))

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """mean + std noise, (B, ...); `noise` is standard normal and may be left out of a deterministic step."""
        if self.deterministic:
            return self.mean
        if noise is None:
            raise ValueError("this step is stochastic (std > 0): pass the noise to draw it with")
        return self.mean + broadcast(self.std, self.mean) * noise

    def log_prob(self, x: Tensor, reduce: "Reduce" = "mean") -> Tensor:
        """log N(x; mean, std^2): (B, ...) -> (B,), float32 or wider.

        "mean" over the d dimensions of a sample, which is what SPO's beta and the clip ranges of DDPO and Flow-GRPO are
        tuned for (arXiv 2406.04314, 2305.13301, 2505.05470); "sum" is d times that, the density of the sample.
        """
        mean, std = self._wide()
        z = (x.to(mean.dtype) - mean) / std
        log_density = (-0.5 * z.square() - std.log() - 0.5 * math.log(2 * math.pi)).flatten(1)
        return log_density.mean(1) if reduce == "mean" else log_density.sum(1)

    def kl(self, mean: Tensor, reduce: "Reduce" = "mean") -> Tensor:
        """KL(self || N(mean, std^2)) = |self.mean - mean|^2/(2 std^2), reduced as in `log_prob`: (B, ...) -> (B,)"""
        own, std = self._wide()
        gap = ((own - mean.to(own.dtype)).square() / (2 * std.square())).flatten(1)
        return gap.mean(1) if reduce == "mean" else gap.sum(1)

    def _wide(self) -> tuple[Tensor, Tensor]:
        """(mean, std) in float32 or wider, std ready to divide by."""
        if bool((self.std <= 0).any()):
            raise ValueError(
                "log_prob of a deterministic step: std = 0 has no density. Use eta > 0, and leave out the last step, "
                "whose std is 0 whenever it ends at t = 0."
            )
        mean = self.mean.to(torch.promote_types(self.mean.dtype, torch.float32))
        return mean, broadcast(self.std, mean)


def guard_log_ratio(new: Transition, old_log_prob: Tensor, old_mean: Tensor, x: Tensor) -> Tensor:
    """log of GRPO-Guard's ratio: [log p - log p_old + m2/(2 std^2)] std,  m2 = mean (mean - mean_old)^2.  (B,)

    A mean over d dimensions makes E[log p - log p_old] = -m2/(2 std^2) and not 0: the plain ratio leans below 1, more
    at late steps, so that an upper clip never acts. This one has mean 1 and a spread that does not depend on t (Wang
    et al., arXiv 2510.22319). old_log_prob: (B,), a "mean"; old_mean, x: (B, ...).
    """
    std = new.std.to(old_log_prob)
    return (new.log_prob(x) - old_log_prob + new.kl(old_mean)) * std


Reduce = Literal["mean", "sum"]
"""Over the dimensions of a sample. A ratio of means is the true ratio to the power 1/d."""


class StepRule(Protocol):
    """HOW to integrate: from the two predictions at t to the distribution of x_s.

    A rule is a function like `ddim`, or a class whose instances have this signature and remember earlier steps
    (`Heun`, `DPMpp2M`): `sample` makes one instance per trajectory. A rule that takes an `eta` takes it by keyword.
    """

    def __call__(
        self, x0: Tensor, eps: Tensor, alpha_t: Tensor, sigma_t: Tensor, alpha_s: Tensor, sigma_s: Tensor
    ) -> Transition:
        """x0, eps: (B, ...); the four coefficients: () or (B,)."""
        ...
