"""The gradient of adjusted direct fine-tuning: every step of a sampler counts alike, whatever the sampler.

    d x_0/d theta = sum_i A_i B_i d out_i/d theta        exact; A_i: the sampler's own coefficient of the output out_i
                 -> sum_i sign(A_i) d out_i/d theta      adjusted; B_i, the networks' Jacobians, are left out

Shen et al., "Finetuning Text-to-Image Diffusion Models for Fairness", arXiv 2311.07604, section 4.2. Their factor is
that of DDPM's steps; here A_i is probed for the grid and the rule in use, one backward pass over scalars without the
network. With out_i the guided output: guidance stays in the gradient.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field

from align.objectives._reward import windowed
from align.registry import ComponentConfig
from align.sampling import SamplingConfig
from samplers import GradPolicy, Rng, sensitivity


class AdjustedConfig(ComponentConfig):
    """How many steps a trajectory has."""

    vary_steps: int = Field(default=0, ge=0)
    """num_steps of each update are drawn from so many fewer to so many more than the recipe's (the paper: 21 and 2),
    so that the adapter does not fit one grid."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        sampling, problems = windowed(recipe.get("sampling"), "full")
        yield from problems
        if sampling is not None and self.vary_steps:
            if sampling.timesteps is not None:
                yield ".vary_steps", "draws another number of steps, and sampling.timesteps fixes it. Remove one."
            if sampling.solver is not None:
                yield (
                    ".vary_steps",
                    "draws another number of steps, and sampling.solver was learned for its own. Remove one.",
                )
            if isinstance(sampling.how.scale, tuple):
                yield (
                    ".vary_steps",
                    "draws another number of steps, and sampling.guidance.scale lists one scale for each. Give one "
                    "scale, or {t: w}.",
                )
            if self.vary_steps >= sampling.num_steps:
                yield (
                    ".vary_steps",
                    f"{self.vary_steps} leaves no step of sampling.num_steps={sampling.num_steps}. Lower it.",
                )


def drawn(sampling: SamplingConfig, vary: int, rng: Rng) -> SamplingConfig:
    """The block with this update's number of steps, uniform on num_steps - vary..num_steps + vary."""
    if not vary:
        return sampling
    num_steps = sampling.num_steps + int(torch.randint(-vary, vary + 1, (), generator=rng.shared("num_steps")))
    return sampling.model_copy(update={"num_steps": num_steps})


def adjusted(sampling: SamplingConfig, model: Any) -> GradPolicy:
    """All steps, inputs detached, each output's gradient over |A_i|: d x_0/d out_i is 1 or -1.

    A_i is 0 where a step's output does not reach x_0, and it has no gradient then.
    """
    grid = sampling.grid(model)
    size = sensitivity(model.schedule, model.kind, grid, step=sampling.step(), eta=sampling.rule_eta()).abs()
    scale = torch.where(size > 0, 1 / size, torch.ones_like(size)).tolist()
    policy = sampling.model_copy(update={"window": "full", "detach_input": True}).grad_policy()
    return replace(policy, scale=scale)
