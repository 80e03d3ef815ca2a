"""DDPO: every sampling step is an action, and steps that led to rewarded images are made more likely.

    score   L = -A log p_theta(x_s | x_t)                                   one update a rollout
    is      L = max(-A R, -A clip(R, 1 - c, 1 + c)),  R = p_theta/p_old     several

Black et al., "Training Diffusion Models with Reinforcement Learning", arXiv 2305.13301, section 4.3 (SF and IS), with
the log-densities as MEANS over the latent's dimensions and c = 1e-4 as released, for Stable Diffusion at 512 pixels
(16,384 numbers). The ratio's spread falls as one over the root of that number: 256 numbers want 8 times the c.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from pydantic import Field

from align.objectives import _transitions
from align.objectives._base import Loss, Parts
from align.objectives._rl_losses import ppo
from align.policy.roles import Policy
from align.registry import ComponentConfig
from samplers.guidance import CfgGrad


class DDPOConfig(ComponentConfig):
    """The estimator of the policy's gradient."""

    name: Literal["ddpo"] = "ddpo"
    form: Literal["score", "is"] = "is"
    """The score function, or the clipped importance ratio, which several updates a rollout need."""
    clip: float = Field(default=1e-4, gt=0)
    """c"""
    cfg_grad: CfgGrad = "both"
    """Branches of a guided output that carry gradient; cond and none spare the unconditional one."""
    tolerance: float | None = Field(default=None, gt=0)
    """Largest gap between a step's log-probability at the rollout and at the first update after it. Default: 1e-4, of a
    network in half precision or quantised 0.02."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield from _transitions.conflicts(recipe)
        data, train = recipe.get("data"), recipe.get("train")
        images = getattr(data, "group_size", 0) * (getattr(data, "num_prompts", None) or 0)
        if self.form == "score" and train is not None and images > train.batch_size:
            yield (
                ".form",
                f"is score, and a rollout of {images} images serves several updates of {train.batch_size}: after the "
                "first they come from another policy. Set it to is, or train.batch_size to all images.",
            )


class DDPO(_transitions.Steps):
    """The objective: steps of rewarded images in."""

    Config = DDPOConfig

    def __init__(self, config: DDPOConfig, parts: Parts):
        super().__init__(config, parts, cfg_grad=config.cfg_grad)

    def __call__(self, policy: Policy, batch: Any, context: Any = None) -> Loss:
        cond = self.model.text.encode(batch.prompts)
        step = self.transition(policy, "train", batch, cond)
        log_prob = step.log_prob(batch.x_s.to(step.mean.device))
        old, _ = self.old(batch, step, log_prob)
        advantage, ratio = batch.advantage.to(log_prob), (log_prob - old).exp()
        losses = -advantage * log_prob if self.config.form == "score" else ppo(ratio, advantage, self.config.clip)
        gap = (ratio.detach() - 1).abs()
        said = batch.said | {"ratio_gap": gap, "clipped": (gap > self.config.clip).float()}
        return Loss(losses, torch.ones_like(losses), said)
