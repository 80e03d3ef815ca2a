"""ReNO: differentiate the reward of an image with respect to the noise that it is made from; nothing else is trained.

    L(x_T) = -r(decode(sample(x_T, prompt)), prompt) - weight K(x_T),     K: how typical the noise is (_priors.py)

Eyring et al., "ReNO: Enhancing One-step Text-to-Image Models through Reward-based Noise Optimization", arXiv
2406.04312, eq. 4-6. Every step carries gradient to x_T. Noise that a stochastic sampler adds on the way is the same at
every iteration. The paper minimises sum_i w_i loss_i; its losses are constants minus the scores here, with its weights:
ImageReward 1, HPSv2.1 (cosine) 5, PickScore (logit) 0.05, CLIP (logit) 0.01.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from align.objectives import _priors as priors
from align.objectives._base import Loss, Parts
from align.policy.noise import NoiseBatch
from align.policy.roles import Policy
from align.registry import ComponentConfig
from align.sampling import rollout
from rewards._latents import Undecoded
from samplers import Rng, full, generator


class RanksConfig(ComponentConfig):
    """Noise optimised by the order of images alone; `train.num_updates` counts rounds, `optim` is not looked at."""

    oracle: str = "reward"
    """Who orders: `reward`, the recipe's rewards; or a program that takes image files and prints their places."""
    num_images: int = Field(default=6, ge=2)
    """m, perturbations that are shown in a round."""
    num_ranked: int | None = Field(default=None, ge=1)
    """k, how many of them are put in order; default: as many as the oracle says."""
    spread: float = Field(default=0.1, gt=0)
    """mu, length of a perturbation in units of the noise's."""
    step: float = Field(default=1.0, gt=0)
    """eta, the longest step along the direction."""
    num_lengths: int = Field(default=4, ge=1)
    """Steps that are tried, each half as long as the one before."""
    timeout: float = Field(default=600.0, gt=0)
    """Seconds for one answer of a program."""


class RenoConfig(ComponentConfig):
    """Optimise the noise of each image; the rest of how long and how fast is in `train` and `optim`."""

    trains: ClassVar[str] = "noise"

    name: Literal["reno"] = "reno"
    reversible: ClassVar[bool] = True
    prior: Literal["radial", "structure", "none"] = "radial"
    """What holds the noise to N(0, I): its length (the paper), its mean and covariance (DNO), or nothing."""
    prior_weight: float = Field(default=0.01, ge=0)
    """Factor of the prior in the loss; 0.01 is as published for `radial`."""
    num_permutations: int = Field(default=100, ge=0)
    """prior=structure: arrangements drawn at each iteration."""
    num_seeds: int = Field(default=1, ge=1)
    """Images of each prompt."""
    num_starts: int = Field(default=1, ge=1)
    """Start each image from the best of so many random noises."""
    min_gain: float = Field(default=0.0, ge=0)
    """End where the mean best reward has risen by less than this a second over the last `patience` iterations."""
    patience: int = Field(default=10, ge=1)
    """Iterations that min_gain looks back on."""
    budget: float | None = Field(default=None, gt=0)
    """Seconds for each batch of images; default: until all iterations are done."""
    ranks: RanksConfig | None = None
    """Optimise by ranks and not by gradients (ZO-RankSGD, arXiv 2303.03751): any reward, or you."""

    @property
    def needs_gradient(self) -> bool:
        """Whether the rewards must have one."""
        return self.ranks is None

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        if self.ranks is not None and self.num_starts > 1:
            yield ".num_starts", f"is {self.num_starts}, and by ranks noise is climbed from the first. Set it to 1."
        combine, rewards = recipe.get("combine"), recipe.get("rewards", {})
        if combine is not None and combine.normalise != "none" and set(combine.statistics) != set(rewards):
            yield (
                "combine.normalise",
                f"is {combine.normalise}: scores scaled by those of a batch make an image depend on the others in it. "
                "Use normalise=fixed with combine.statistics for every reward, or none.",
            )


class Reno:
    """The objective: rows of noise in, one loss a row out; each row's best iterate is noted where the noise lives."""

    Config = RenoConfig

    def __init__(self, config: RenoConfig, parts: Parts):
        self.config = config
        self.model, self.sampling, self.rewards, self.seed = parts.model, parts.sampling, parts.rewards, parts.seed

    def __call__(self, policy: Policy, batch: NoiseBatch, context: Any = None) -> Loss:
        trajectory = rollout(
            self.sampling,
            self.model,
            policy.role("train"),
            batch.prompts,
            Rng(self.seed, batch.indices),
            grad=replace(self.sampling.grad_policy(), keep=full().keep, detach_input=False),
            x_T=batch.x_T,
        )
        drawn = Undecoded(trajectory.x0, self.model.codec)
        terms, total, metrics = self.rewards.score(drawn, batch.prompts)
        batch.observe(total.detach(), drawn.pixels)
        metrics = {f"reward/{label}": scores for label, scores in terms.items()} | metrics
        metrics["reward/total"] = total.detach()
        losses = -total
        if self.config.prior != "none":
            prior = self.prior(batch.x_T, batch.step)
            losses = losses - self.config.prior_weight * prior.to(losses)
            metrics["prior"] = prior.detach()
        return Loss(losses, torch.ones_like(losses), metrics)

    def prior(self, x_T: Tensor, step: int) -> Tensor:
        """(B, ...) -> (B,), higher is more typical; the permutations depend on (seed, step) only."""
        if self.config.prior == "radial":
            return priors.radial(x_T)
        drawn = generator(self.seed, "permutations", step)
        return priors.structure(x_T, drawn, num_permutations=self.config.num_permutations)
