"""TDM, trajectory distribution matching: a K-step student whose states are distributed as the teacher's, without data.

    j drawn of the K steps;  tau in [t_{j+1}, t_j - 0.01], or up to the noise;  x_tau = alpha x0_hat + sigma eps
    D = x0_teacher - x0_fake at x_tau, the teacher guided by w
    L = H(x0_hat - sg(x0_hat + D)) / mean |x0_hat - x0_teacher|,     H(d) = mean sqrt(d^2 + c^2) - c
    fake: min(SNR, 5) |x0_fake - x0_hat|^2, each interval of times weighted by its length

Luo et al., "Learning Few-Step Diffusion Models by Trajectory Distribution Matching", arXiv 2503.06674. Each step of the
student is matched at the noise levels between its own and the next one's alone, so that fake knows by the
time which step's images it is asked about. Steps keep the noise that they imply (DDIM, Euler), as published; or all of
it is drawn anew (`step_rule: lcm`), and then the next state is distributed exactly as what is compared, x0_hat with
noise that knows nothing of it, where the implied noise depends on x0_hat.
"""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from align.objectives._base import Loss
from align.objectives._few import MARGIN, FewStep, FewStepConfig, Rows, Seen
from align.objectives._matching import importance, mean, min_snr, size, toward
from align.policy.roles import Policy
from samplers import add_noise


class TDMConfig(FewStepConfig):
    """At which times the student is compared, and by which distance."""

    rules: ClassVar[tuple[str, ...]] = ("ddim", "euler", "lcm")
    name: Literal["tdm"] = "tdm"
    compare: Literal["interval", "above"] = "interval"
    """tau of a step: between its own time and the next one's, or anywhere above the next one's."""
    huber: float = Field(default=1e-3, gt=0)
    """c, in the latents' own scale: differences well above it count by their size, those below by their square."""
    snr: float = Field(default=5.0, gt=0)
    """Most of the weight alpha^2/sigma^2 of fake's errors of x0."""


class TDM(FewStep):
    """The objective: prompts in."""

    Config = TDMConfig

    def student(self, policy: Policy, batch: Any, context: Any = None) -> Loss:
        """The step j's prediction goes where the teacher says that it should be likelier."""
        rows, cond = self.rows(policy, batch), self.model.text.encode(batch.prompts)
        x0_hat = self.predicted(policy.role("train"), rows.x_t, rows.t, cond).x0
        tau, eps = self.noise(rows, "student")
        with torch.no_grad():
            x_tau = add_noise(self.model.schedule, x0_hat, eps, tau)
            teacher = self.predicted(self.guided(policy, "reference", self.config.guidance), x_tau, tau, cond).x0
            direction = teacher - self.predicted(policy.role("fake"), x_tau, tau, cond).x0
            scale = size(x0_hat - teacher)
        losses = toward(x0_hat, direction, scale, self.config.huber)
        return Loss(losses, torch.ones_like(losses), {"apart": size(direction), "error_teacher": scale})

    def fake_error(self, seen: Seen, rows: Rows, tau: Tensor, eps: Tensor) -> Tensor:
        """(B,)"""
        alpha, sigma = self.model.schedule(tau)
        weight = min_snr(alpha, sigma, self.config.snr) * importance(*self._intervals(), rows.step)
        return weight.to(seen.x0) * mean((seen.x0 - rows.x0_hat).square())

    def times(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """As `compare` says."""
        low, high = self._intervals()
        return low[rows.step], high[rows.step]

    def _intervals(self) -> tuple[Tensor, Tensor]:
        """(K,), (K,): of each step."""
        grid = self.grid_times()
        top = grid[:-1] if self.config.compare == "interval" else torch.ones_like(grid[:-1])
        low = grid[1:].clamp(min=self.config.t_min)
        return low, torch.maximum(top - MARGIN, low + MARGIN)  # a last step below t_min, as SD3's, has an interval too
