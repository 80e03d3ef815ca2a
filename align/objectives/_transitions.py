"""What the objectives share that train single sampling steps: the guided step from x_t to x_s under a role, and its
ratio to the step that was drawn."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from align.data._wanted import Wanted
from align.errors import UserError
from align.models._base import device_of
from align.objectives._base import Parts
from align.policy.roles import Policy
from samplers import Transition, noisy, split
from samplers.guidance import CfgGrad

Gather = Callable[[Tensor], Tensor]
EXACT, HALF = 1e-4, 0.02  # what rounding explains of a log-probability, by the network's precision


def conflicts(recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What keeps a recipe from training the steps of groups."""
    data, sampling = recipe.get("data"), recipe.get("sampling")
    if data is not None and not hasattr(data, "group_size"):
        yield "data", "makes no groups of the policy's own images. Use `data: {name: groups, prompts: ...}`."
    if sampling is not None and not sampling.stochastic:
        yield (
            "sampling.noise_law",
            f"is not set, and {sampling.step_rule} draws no noise: a step without noise has no density to train. Set "
            "it to cps, or step_rule to ddim with eta: 1.",
        )
    yield from sampling.alone() if sampling is not None else ()


class Steps:
    """Base: `wanted` says what the source keeps; `transition` is the policy's step at the rows' x_t."""

    def __init__(self, config: Any, parts: Parts, *, means: bool = False, cfg_grad: CfgGrad = "both"):
        self.config, self.model, self.sampling = config, parts.model, parts.sampling
        self.wanted = Wanted(transitions=True, means=means)
        self.rule, self.cfg_grad = noisy(parts.sampling.law()), cfg_grad
        self._apart: list[Tensor] = []
        self._autocast = False

    def transition(self, policy: Policy, role: str, batch: Any, cond: Any) -> Transition:
        """Rows may stand at different steps; coefficients stay on the CPU, where the rows are."""
        device = device_of(self.model.network)
        self._autocast |= device.type != "meta" and torch.is_autocast_enabled(device.type)
        uncond = self.sampling.unprompted(self.model.text)
        denoiser = self.sampling.guided(policy.role(role), uncond, self.cfg_grad)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = denoiser.schedule(batch.t), denoiser.schedule(batch.s)
        x_t = batch.x_t.to(device)
        x0, eps = split(denoiser(x_t, batch.t.to(device), cond), x_t, alpha_t, sigma_t, denoiser.kind)
        return self.rule(x0, eps, alpha_t, sigma_t, alpha_s, sigma_s)

    def old(self, batch: Any, step: Transition, log_prob: Tensor) -> tuple[Tensor, Tensor | None]:
        """(log p_old(x_s), the old mean or None). Before the policy has moved they are its own, to the last bit; what
        was stored at the rollout must then be the same but for rounding, which `after_update` asserts."""
        stored = batch.log_prob.to(log_prob)
        if not batch.fresh:
            return stored, batch.mean.to(step.mean) if self.wanted.means else None
        self._apart.append((log_prob.detach() - stored).abs().max())
        return log_prob.detach(), step.mean.detach()

    @property
    def tolerance(self) -> float:
        """The config's; by default what rounding explains: rollout and update draw other numbers of rows at once, by
        which last bits differ, in half precision by more."""
        if self.config.tolerance is not None:
            return self.config.tolerance
        exact = all(p.dtype in (torch.float32, torch.float64) for p in self.model.network.parameters())
        return EXACT if exact and not self._autocast else HALF

    def after_update(self, gather: Gather) -> None:
        """The same on every process; called before the optimiser moves."""
        device = device_of(self.model.network)
        apart, self._apart = self._apart or [torch.zeros((), device=device)], []
        worst = float(gather(torch.stack(apart).amax().float()[None]).amax())
        tolerance = self.tolerance
        if not worst <= tolerance:
            raise UserError(
                f"objective: at the first update after a rollout the log-probabilities are {worst:.1e} from those that "
                f"were drawn (tolerance {tolerance:g}): rollout and training do not see the same network. "
                "Look for dropout, another guidance or another precision, or raise objective.tolerance."
            )
