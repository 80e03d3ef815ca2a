"""Flow-GRPO: DDPO's clipped ratio with advantages of groups, on a window of steps, held to the reference by a KL.

    L = max(-A R, -A clip(R, 1 - c, 1 + c)) / w + kl_weight KL(p_theta(x_s | x_t) || p_ref(x_s | x_t))

    R = p_theta/p_old, w = 1;   with `guard` R's log is centred and scaled by std (samplers/transition.py), w = t - s
    KL = mean (mean_theta - mean_ref)^2/(2 std^2)

Liu et al., arXiv 2505.05470, eq. 8; the released code's KL is t - s times this one. Few steps of a window: its Fast
variant, and MixGRPO (Li et al., arXiv 2507.21802), by data.window. Guard: Wang et al., arXiv 2510.22319. `mask`: no
gradient where mean |mean_theta - mean_old|^2/(2 std^2) exceeds it and the ratio has gone the way A asks for (DPPO).
t - s is taken in flow time, tau = sigma/(alpha + sigma), so that it is what it says on any schedule.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from align.objectives import _transitions
from align.objectives._base import Loss, Parts
from align.objectives._rl_losses import ppo
from align.policy.roles import Policy
from align.registry import ComponentConfig
from samplers import Transition, flow_time, guard_log_ratio
from samplers.guidance import CfgGrad


class GRPOConfig(ComponentConfig):
    """How far the policy may go from the one that drew, and from the base; which steps: data.window."""

    name: Literal["grpo"] = "grpo"
    clip: float = Field(default=1e-4, gt=0)
    """c, for MEAN log-probabilities; 1e-5 with `window.size` 2 or 3 (Flow-GRPO-Fast). More for smaller latents."""
    kl: float = Field(default=0.0, ge=0)
    """Weight of the KL to the reference (Flow-GRPO: 0.04, 0.01 for PickScore); 0 spares its pass."""
    guard: bool = False
    """GRPO-Guard's ratio and weights: all steps count alike."""
    mask: float | None = Field(default=None, gt=0)
    """DPPO's bound (1e-6), beside or in place of the clip."""
    cfg_grad: CfgGrad = "cond"
    """Branches of a guided output that carry gradient (Flow-GRPO: cond); sampling.guidance_scale 1 has but one."""
    tolerance: float | None = Field(default=None, gt=0)
    """Largest gap between a step's log-probability at the rollout and at the first update after it. Default: 1e-4, of a
    network in half precision or quantised 0.02."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield from _transitions.conflicts(recipe)


class GRPO(_transitions.Steps):
    """The objective: steps of groups of rewarded images in."""

    Config = GRPOConfig

    def __init__(self, config: GRPOConfig, parts: Parts):
        super().__init__(config, parts, means=config.guard or config.mask is not None, cfg_grad=config.cfg_grad)

    def __call__(self, policy: Policy, batch: Any, context: Any = None) -> Loss:
        config, cond = self.config, self.model.text.encode(batch.prompts)
        reference = None
        if config.kl:
            with torch.no_grad():
                reference = self.transition(policy, "reference", batch, cond)
        step = self.transition(policy, "train", batch, cond)
        x_s = batch.x_s.to(step.mean.device)
        log_prob = step.log_prob(x_s)
        old, old_mean = self.old(batch, step, log_prob)
        log_ratio = log_prob - old
        if config.guard:
            assert old_mean is not None
            log_ratio = guard_log_ratio(step, old, old_mean, x_s)
        ratio, advantage = log_ratio.exp(), batch.advantage.to(log_prob)
        losses = ppo(ratio, advantage, config.clip)
        gap = ratio.detach() - 1
        said = batch.said | {"ratio_gap": gap.abs(), "clipped": (gap.abs() > config.clip).float()}
        if config.mask is not None:
            assert old_mean is not None
            stopped = self._stopped(step, old_mean, gap, advantage)
            losses = torch.where(stopped, losses.detach(), losses)
            said["masked"] = stopped.float()
        if config.guard:
            losses = losses / self._flow_steps(batch).to(losses)
        if reference is not None:
            kl = step.kl(reference.mean)
            losses = losses + config.kl * kl
            said["kl"] = kl.detach()
        return Loss(losses, torch.ones_like(losses), said)

    def _stopped(self, step: Transition, old_mean: Tensor, gap: Tensor, advantage: Tensor) -> Tensor:
        """(B,) bool: far from the old policy, in the direction that the advantage pulls."""
        return (step.kl(old_mean).detach() > self.config.mask) & (gap * advantage > 0)

    def _flow_steps(self, batch: Any) -> Tensor:
        """(B,): h of each row, in flow time."""
        return flow_time(*self.model.schedule(batch.t)) - flow_time(*self.model.schedule(batch.s))
