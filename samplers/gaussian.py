"""The exact denoiser of Gaussian data, x0 ~ N(mu, v^2 I): every closed form of a sampler can be checked against it.

    y_t = x_t - alpha_t mu,   V_t = alpha_t^2 v^2 + sigma_t^2
    E[x0 | x_t] = mu + (alpha_t v^2/V_t) y_t,     E[eps | x_t] = (sigma_t/V_t) y_t

so one DDIM step is y_s = k y_t with k = (alpha_s alpha_t v^2 + sigma_s sigma_t)/V_t, and the flow of the exact ODE is
y_s = sqrt(V_s/V_t) y_t. Adding `offset` to the predicted x0 plays the part of a trainable parameter.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from samplers.denoiser import TensorCond
from samplers.prediction import Prediction, target
from samplers.schedule import Schedule, broadcast


@dataclass(frozen=True)
class GaussianDenoiser:
    """`std` is v > 0; mu is the row `cond["mean"]`, (B, ...); `offset` broadcasts to x0 and may require a gradient."""

    schedule: Schedule
    kind: Prediction
    std: float = 1.0
    offset: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def __call__(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        alpha_t, sigma_t = (broadcast(c, x_t) for c in self.schedule(t))
        mean = cond.tensors["mean"]
        gain = alpha_t * self.std**2 / (alpha_t**2 * self.std**2 + sigma_t**2)
        x0 = mean + gain * (x_t - alpha_t * mean) + self.offset
        eps = (x_t - alpha_t * x0) / sigma_t  # an offset x0 keeps x_t = alpha_t x0 + sigma_t eps
        return target(x0, eps, alpha_t, sigma_t, self.kind)


def constant(mean: Tensor) -> TensorCond:
    """The conditioning of `GaussianDenoiser`: the data's mean, one row per sample, (B, ...)."""
    return TensorCond({"mean": mean})
