"""Adjusted DFT: differentiate the reward of a finished sample through all steps, each of which counts alike.

    L = -r(decode(x_0), prompt),     d x_0/d out_i = sign(A_i) for every step i, whatever the solver

Shen et al., "Finetuning Text-to-Image Diffusion Models for Fairness", arXiv 2311.07604, section 4.2 (there for a loss
on the distribution of images: align/objectives/fairness.py). DRaFT's gradient of an early step is a product of all
later networks' Jacobians, which explodes, times the sampler's coefficient, which is a hundred times larger at the first
step than at the last one. Both are taken out: see `_adjusted.py`.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch

from align.objectives._adjusted import AdjustedConfig, adjusted, drawn
from align.objectives._base import Loss
from align.objectives._reward import RewardObjective, RewardObjectiveConfig
from align.policy.roles import Policy
from align.sampling import rollout
from samplers import Rng


class AdjustedDFTConfig(AdjustedConfig, RewardObjectiveConfig):
    """All steps carry gradient: `sampling.window` is not looked at."""

    name: Literal["adjusted_dft"] = "adjusted_dft"
    reversible: ClassVar[bool] = True

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield from AdjustedConfig.conflicts(self, recipe)


class AdjustedDFT(RewardObjective):
    """The objective: prompts in, sampled and decoded with the adjusted gradient."""

    Config = AdjustedDFTConfig
    same_steps = True

    def __call__(self, policy: Policy, batch: Any, context: Any = None) -> Loss:
        rng = Rng(self.seed, batch.indices, batch.step)
        sampling = drawn(self.sampling, self.config.vary_steps, rng)
        grad = adjusted(sampling, self.model)
        trajectory = rollout(sampling, self.model, policy.role("train"), batch.prompts, rng, grad=grad)
        losses, metrics = self.losses(trajectory.x0, batch.prompts)
        return Loss(losses, torch.ones_like(losses), metrics)
