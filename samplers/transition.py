"""One step t -> s of a sampler, as a Gaussian: x_s ~ N(mean, std^2 I).  std = 0 is a deterministic step."""

import math
from dataclasses import dataclass
from typing import Protocol

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

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x; mean, std^2) averaged over the dimensions of a sample: (B, ...) -> (B,), float32 or wider.

        The average, not the sum, is what SPO's beta is tuned for (arXiv 2406.04314); d dimensions scale it by d.
        """
        if bool((self.std <= 0).any()):
            raise ValueError(
                "log_prob of a deterministic step: std = 0 has no density. Use eta > 0, and leave out the last step, "
                "whose std is 0 whenever it ends at t = 0."
            )
        wide = torch.promote_types(self.mean.dtype, torch.float32)
        mean = self.mean.to(wide)
        std = broadcast(self.std, mean)
        z = (x.to(wide) - mean) / std
        log_density = -0.5 * z.square() - std.log() - 0.5 * math.log(2 * math.pi)
        return log_density.flatten(1).mean(1)


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
