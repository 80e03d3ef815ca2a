"""ODE regression: a student of K steps that goes where its teacher's guided trajectory goes, from the same noise.

    x_T -> x_{t_1} -> ... -> x_0      the teacher's, guided by w, with `substeps` of its steps in each of the student's
    xhat_{j+1} = alpha_{j+1} x0_hat + sigma_{j+1} eps_hat     the student's step j, taken from the teacher's x_{t_j}
    L = mean over j of |(xhat_{j+1} - x_{t_{j+1}}) / b_j|^2,   b_j = sigma_{j+1} alpha_j - alpha_{j+1} sigma_j

b_j is what an error of the velocity is multiplied by in the step (v on VP, the velocity itself on a flow), so that all
lengths of step count alike, whatever the network predicts. Luhman and Luhman, "Knowledge Distillation in Iterative
Generative Models for Improved Sampling Speed", arXiv 2101.02388, for one step; Yin et al., DMD, arXiv 2311.18828,
begin their students so. The minimum is the teacher's map where the student can express it, and the mean of what it
cannot tell apart where not, which is blurred: matching distributions (`tdm`) goes on from here.
"""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from align.models._base import device_of
from align.objectives._base import Loss, Parts
from align.objectives._few import Student, StudentConfig
from align.objectives._matching import mean
from align.policy.roles import Policy
from samplers import Grid, Rng, sample


class OdeRegressionConfig(StudentConfig):
    """How finely the teacher goes."""

    name: Literal["ode_regression"] = "ode_regression"
    substeps: int = Field(default=3, ge=1)
    """Steps of the teacher within each of the student's, two network calls each where it is guided."""


class OdeRegression(Student):
    """The objective: prompts in. A row of the batch is one trajectory, and all steps of it are learnt from."""

    Config = OdeRegressionConfig

    def __init__(self, config: OdeRegressionConfig, parts: Parts):
        super().__init__(config, parts)
        times = self.grid_times()
        shares = torch.arange(config.substeps, dtype=torch.float64) / config.substeps
        self.fine = torch.cat([torch.lerp(times[:-1, None], times[1:, None], shares).flatten(), times[-1:]])

    def __call__(self, policy: Policy, batch: Any, context: Any = None) -> Loss:
        states, times = self.states(policy, batch), self.grid_times()
        cond, steps = self.model.text.encode(batch.prompts), []
        for x_t, x_s, t, s in zip(states[:-1], states[1:], times[:-1], times[1:], strict=True):
            seen = self.predicted(policy.role("train"), x_t, t.expand(len(x_t)), cond)
            (alpha_t, sigma_t), (alpha_s, sigma_s) = self.model.schedule(t), self.model.schedule(s)
            length = float(sigma_s * alpha_t - alpha_s * sigma_t)
            steps.append(mean(((float(alpha_s) * seen.x0 + float(sigma_s) * seen.eps - x_s) / length).square()))
        each = torch.stack(steps)
        told = {f"error_{j}": one for j, one in enumerate(each.detach())}
        return Loss(each.mean(0), torch.ones_like(each[0]), told)

    @torch.no_grad()
    def states(self, policy: Policy, batch: Any) -> tuple[Tensor, ...]:
        """K + 1 of (B, ...): the teacher's states at the student's times, from noise to data."""
        rng = Rng(self.seed, batch.indices, batch.step)
        scale, device = self.sampling.grid(self.model).init_scale, device_of(self.model.network)
        shape = (len(batch.prompts), *self.model.latent_shape(self.sampling.image_size))
        x_T = rng.normal("x_T", torch.empty(shape, device=device)) * scale
        teacher = self.guided(policy, "reference", self.config.guidance)
        found = sample(teacher, x_T, Grid(self.fine, scale), self.model.text.encode(batch.prompts), keep="states")
        return found.states[:: self.config.substeps]
