"""DRTune: differentiate the reward of an early prediction through a few equally spaced steps, with detached inputs.

    x_s = rule(out(sg(x_t), t), x_t)      at k of the steps; at the others `out` is a constant
    L   = -r(decode(x0_hat(x_m)), prompt),    m uniform on the last `early_stop` N of the N steps

Wu et al., "Deep Reward Supervisions for Tuning Text-to-Image Diffusion Models", arXiv 2405.00760, algorithm 1. The
network sees x_t as a constant while the latent recursion stays in the graph. So the gradient is a plain sum over the k
steps, with the recursion's own coefficients and no product of network Jacobians: it neither explodes nor vanishes with
their number, and reaches the early steps, which decide the composition. The k steps are spread over those that are
taken before the prediction is read.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from align.objectives._base import Loss, Parts
from align.objectives._reward import RewardObjective, RewardObjectiveConfig, windowed
from align.policy.roles import Policy
from align.sampling import rollout
from samplers import Rng


class DRTuneConfig(RewardObjectiveConfig):
    """Where the reward is read; `sampling.subset_k` is the number of trained steps, k."""

    name: Literal["drtune"] = "drtune"
    reversible: ClassVar[bool] = True
    early_stop: float = Field(0.4, ge=0, lt=1)
    """The reward is read after a step drawn from this last share of them; 0: always after the last."""

    def first_stop(self, num_steps: int) -> int:
        """The earliest step whose prediction is read, counted from 0."""
        return min(num_steps - 1, num_steps - int(self.early_stop * num_steps))

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        sampling, problems = windowed(recipe.get("sampling"), "subset")
        yield from problems
        if sampling is not None and sampling.subset_k > (
            fewest := sampling.call_of(self.first_stop(sampling.num_steps)) + 1
        ):
            yield (
                "sampling.subset_k",
                f"{sampling.subset_k} exceeds {fewest}, the fewest network calls that objective.early_stop="
                f"{self.early_stop} may leave. Lower one of them.",
            )


class DRTune(RewardObjective):
    """The objective: prompts in, sampled to a random late step with gradient through k of the steps up to it."""

    Config = DRTuneConfig

    def __init__(self, config: DRTuneConfig, parts: Parts):
        super().__init__(config, parts)
        self.sampling, _ = windowed(parts.sampling, "subset", detach_input=True)

    def __call__(self, policy: Policy, batch: Any, context: Any = None) -> Loss:
        rng = Rng(self.seed, batch.indices, batch.step)
        num_steps = self.sampling.num_steps
        m = int(torch.randint(self.config.first_stop(num_steps), num_steps, (), generator=rng.shared("m")))
        role, grad, num_calls = policy.role("train"), self.sampling.grad_policy(), self.sampling.call_of(m) + 1
        trajectory = rollout(self.sampling, self.model, role, batch.prompts, rng, grad=grad, num_calls=num_calls)
        losses, metrics = self.losses(trajectory.x0_hat, batch.prompts)
        metrics["step_read"] = torch.tensor(float(m))
        return Loss(losses, torch.ones_like(losses), metrics)
