"""SPO: prefer the better of two candidates for one sampling step, judged at that step.

    log p(x_s | x_t) = mean over dimensions of log N(x_s; mean(x_t), std^2)        the DDIM transition, guided
    ratio = clamp(p_theta/p_ref, 1 - c, 1 + c),   L = -log sigmoid( beta (log ratio_w - log ratio_l) )

Liang et al., "Aesthetic Post-Training Diffusion Models from Generic Preferences with Step-by-step Preference
Optimization", arXiv 2406.04314, eq. 9, with beta = 10 and c = 0.1 as released: the argument of the sigmoid is then at
most 10 log(1.1/0.9) = 2.007 and the loss at least 0.126. Outside the band the clamp passes no gradient.

Both candidates come from the same x_t, so that one forward of the policy serves both. The pairs are made by
align/data/rollouts.py, where the method's judge lives.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from pydantic import Field

from align.models._base import device_of
from align.objectives._base import Loss, Parts
from align.objectives._losses import DPOForm, clamped, dpo
from align.objectives._preference import UNLIKE, masks_apart
from align.objectives._sides import SidedConfig
from align.policy.roles import Policy
from samplers import Transition, noisy, split


class SPOConfig(SidedConfig):
    """SPO's settings; eta, guidance and steps are those of `sampling`."""

    name: Literal["spo"] = "spo"
    beta: float = Field(default=10.0, gt=0)
    """How closely the policy is held to the reference, on log-densities that are means over dimensions."""
    clamp: float | None = Field(default=0.1, gt=0, lt=1)
    """c; null: no clamp."""
    form: DPOForm = "sigmoid"
    """As in Diffusion-DPO."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield from super().conflicts(recipe)
        yield from masks_apart(recipe, UNLIKE)
        data = recipe.get("data")
        if data is not None and not hasattr(data, "num_candidates"):
            yield "data", "makes no pairs of sampling steps. Use `data: {name: rollouts, prompts: ...}`."


class SPO:
    """The objective: judged transitions in."""

    Config = SPOConfig

    def __init__(self, config: SPOConfig, parts: Parts):
        self.config, self.model, self.sampling = config, parts.model, parts.sampling

    def __call__(self, policy: Policy, batch: Any, context: Any = None) -> Loss:
        weight = batch.rows.kept
        chosen = [i for i, kept in enumerate(weight.tolist()) if kept]
        device = device_of(self.model.network)
        losses, said = torch.zeros(len(batch), device=device), {"kept": weight.to(device)}
        if not chosen:  # a process may be left without pairs; its share of the gradient is 0, not absent
            nothing = torch.stack([p.sum() for p in policy.adapter.parameters()]).sum() * 0
            return Loss(losses + nothing, weight.to(device), said)
        rows = batch.rows.at(chosen)
        cond = self.model.text.encode([batch.prompts[i] for i in chosen])
        with torch.no_grad():
            reference = self._transition(policy, "reference", rows, cond)
        step = self._transition(policy, "train", rows, cond)
        sides = (rows.x_l, rows.x_w) if self.config.swapped else (rows.x_w, rows.x_l)
        gaps = [step.log_prob(x) - reference.log_prob(x) for x in (side.to(device) for side in sides)]
        ratio_w, ratio_l = (clamped(gap, self.config.clamp) for gap in gaps)
        values = dpo(ratio_w, ratio_l, beta=self.config.beta, form=self.config.form)
        margin = (self.config.beta * (ratio_w - ratio_l)).detach()
        said |= {"margin": margin, "accuracy": (margin > 0).double() + 0.5 * (margin == 0).double()}
        for side, gap, ratio in zip("wl", gaps, (ratio_w, ratio_l), strict=True):
            said[f"log_ratio_{side}"] = gap.detach()
            said[f"clamped_{side}"] = (gap != ratio).float()
        losses = losses.to(values).index_put((torch.tensor(chosen, device=device),), values)
        return Loss(losses, weight.to(device), said)

    def _transition(self, policy: Policy, role: str, rows: Any, cond: Any) -> Transition:
        """The guided DDIM step from x_t to the level of s. Its coefficients stay on the CPU, where `rows` are."""
        device = device_of(self.model.network)
        denoiser = self.sampling.guided(policy.role(role), self.sampling.unprompted(self.model.text))
        (alpha_t, sigma_t), (alpha_s, sigma_s) = denoiser.schedule(rows.t), denoiser.schedule(rows.s)
        x_t = rows.x_t.to(device)
        x0, eps = split(denoiser(x_t, rows.t.to(device), cond), x_t, alpha_t, sigma_t, denoiser.kind)
        return noisy(self.sampling.law())(x0, eps, alpha_t, sigma_t, alpha_s, sigma_s)
