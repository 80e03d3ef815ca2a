"""AlignProp: differentiate the reward of a finished sample through a number of steps that is drawn anew each update.

    L = -r(decode(x_0), prompt);   the network's output is constant in the steps that the draw leaves out

Prabhudesai et al., "Aligning Text-to-Image Diffusion Models with Reward Backpropagation", arXiv 2310.03739. Three laws
of the draw exist, of N steps, i = 0 the noisiest:

    contiguous   the last K steps, K uniform on min_k..max_k               the paper (section 4.2)
    bernoulli    each step by itself, P(i is kept) = (i + 1)/(N + 1)       the authors' code of 2023
    normal       the steps i >= int(n), n ~ N(42, 5^2) within [1, N)       their code of 2024, for N = 50

The code of 2023 takes eta 0 and guidance 7.5, that of 2024 eta 1 and guidance 5. A draw is the whole batch's: it
depends on (seed, update) only. Where target is set the loss is |r - target|.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch

from align.objectives._base import Loss, Parts
from align.objectives._reward import RewardObjective, RewardObjectiveConfig, windowed
from align.policy.roles import Policy
from align.sampling import rollout
from samplers import Rng


class AlignPropConfig(RewardObjectiveConfig):
    """Which law draws the steps; its numbers are those of `sampling` (min_k, max_k; normal_mean, normal_std)."""

    name: Literal["alignprop"] = "alignprop"
    reversible: ClassVar[bool] = True
    law: Literal["contiguous", "bernoulli", "normal"] = "contiguous"
    """The last K steps with K drawn; each step by itself; or all steps from a normally distributed one on."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield from windowed(recipe.get("sampling"), self.law)[1]


class AlignProp(RewardObjective):
    """The objective: prompts in, sampled and decoded with gradient through the drawn steps."""

    Config = AlignPropConfig

    def __init__(self, config: AlignPropConfig, parts: Parts):
        super().__init__(config, parts)
        self.sampling, _ = windowed(parts.sampling, config.law)

    def __call__(self, policy: Policy, batch: Any, context: Any = None) -> Loss:
        rng = Rng(self.seed, batch.indices, batch.step)
        trajectory = rollout(
            self.sampling, self.model, policy.role("train"), batch.prompts, rng, grad=self.sampling.grad_policy()
        )
        losses, metrics = self.losses(trajectory.x0, batch.prompts)
        metrics["kept_steps"] = torch.tensor(float(sum(trajectory.kept)))
        return Loss(losses, torch.ones_like(losses), metrics)
