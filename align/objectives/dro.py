"""DRO: denoise good images better and bad ones worse; no pairs and, but for some bounds, no reference.

    L = mean of s err_theta,   s = +1 for a good image, -1 for a bad one,   err = mean (out - target)^2

Li et al., "DSO: Aligning 3D Generators with Simulation Feedback for Physical Soundness", arXiv 2503.22677, whose code
trains on pairs at one t and one eps, mean(err_w - err_l). This has no lower bound: the error of bad images grows until
nothing is left of the model, and the published run is ended early. What bounds it here:

    guard   a pair's bad gradient times f in [0, 1], the largest that does not raise its good image's error to first
            order (align/objectives/_losses.py): needs pairs
    clamp   -min(err, c err_ref): no gradient once a bad image's error is c times the reference's
    snpo    with d = beta err: L_bad = -m/beta, m = -log(lam exp(-d_theta) + (1 - lam) exp(-d_ref)) - d_ref, which is at
            most -log(1 - lam)
    none    as published; it must be asked for by `unbounded: true`
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from align.objectives._base import Loss
from align.objectives._labelled import LabelledConfig, LabelledObjective, Noised
from align.objectives._losses import guard_factor
from align.objectives._preference import APART, UNLIKE, dropped, error_scale, masks_apart, noised, targets
from align.policy.roles import Policy
from samplers import Rng


class DROConfig(LabelledConfig):
    """DRO's settings."""

    name: Literal["dro"] = "dro"
    bound: Literal["guard", "clamp", "snpo", "none"] = "guard"
    """What keeps the error of bad images from growing without end; guard needs pairs."""
    unbounded: bool = False
    """Says that bound=none is meant."""
    clamp: float = Field(default=2.0, gt=1)
    """bound=clamp: c, times the reference's error."""
    beta: float = Field(default=1000.0, gt=0)
    """bound=snpo: of the errors, which are means over dimensions."""
    lam: float = Field(default=0.9, gt=0, lt=1)
    """bound=snpo: lambda, how much of the mixture is the policy."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        data = recipe.get("data")
        if data is not None and not (hasattr(data, "labels") or getattr(data, "has_pairs", False)):
            yield "data", "holds no labelled images. Use `data: {name: labels, labels: FOLDER}`, or preferences."
        paired = getattr(data, "has_pairs", False)
        yield from masks_apart(recipe, APART if paired else UNLIKE)
        if not paired and data is not None and self.bound == "guard":
            yield ".bound", "guard weighs a pair's bad image against its good one. Use clamp or snpo with labels."
        if self.bound == "none" and not self.unbounded:
            yield (
                ".bound",
                "none leaves the loss without a lower bound: it forgets how to denoise unless it is ended early. Take "
                "clamp, snpo or guard, or say that it is meant by unbounded=true.",
            )


class DRO(LabelledObjective):
    """The objective: labelled images in, or pairs, of which the winner is good and the loser bad."""

    Config = DROConfig

    def __call__(self, policy: Policy, batch: Any, context: Any = None) -> Loss:
        config, paired = self.config, not hasattr(batch, "good")
        rows = self.noised_pairs(policy, batch) if paired else self.noised(policy, batch)
        reference = self.error(policy, "reference", rows)
        residual = self.residual(policy, "train", rows)
        error = residual.square().flatten(1).mean(1)
        values, said = rows.sign * error, self.said(rows, error, reference)
        bad = rows.sign < 0
        if config.bound == "guard":
            f = guard_factor(*residual.detach().chunk(2)).to(error)
            factor = torch.cat([torch.ones_like(f), f])
            values = factor * values + (1 - factor) * values.detach()
            said["guard"] = f
        elif config.bound != "none":
            bounded = (
                -error.minimum(config.clamp * reference) if config.bound == "clamp" else self._snpo(error, reference)
            )
            values = torch.where(bad, bounded, values)
        values = rows.scale.to(values) * values
        losses = values.unflatten(0, (2, -1)).mean(0) if paired else values
        return Loss(losses, torch.ones_like(losses), said)

    @torch.no_grad()
    def noised_pairs(self, policy: Policy, batch: Any) -> Noised:
        """b pairs as 2 b rows, good ones first; a pair has one t, one eps and one dropped prompt."""
        config, role, pairs = self.config, policy.role("reference"), batch.load()
        rng, mean = Rng(self.seed, batch.indices, batch.step), pairs.winner.mean
        vae_noise, eps = rng.normal("vae", mean), rng.normal("eps", mean)
        x0 = pairs.winner.sample(vae_noise), pairs.loser.sample(vae_noise)
        t = config.times.draw(rng, role.schedule, mean)
        cond_w, cond_l = pairs.conds(dropped(rng, config.prompt_dropout))
        sign = torch.cat([torch.ones_like(t), -torch.ones_like(t)]).to(mean)
        scale = error_scale(config, role.schedule, role.kind, t).repeat(2)
        x_t, goal = noised(role.schedule, x0, (eps, eps), t), targets(role, x0, (eps, eps), t)
        return Noised(x_t, t.repeat(2), goal, cond_w.cat(cond_l), None, sign, scale)

    def _snpo(self, error: Tensor, reference: Tensor) -> Tensor:
        """-m/beta, (b,)."""
        return -snpo_margin(self.config.beta * error, self.config.beta * reference, self.config.lam) / self.config.beta


def snpo_margin(d_theta: Tensor, d_ref: Tensor, lam: float) -> Tensor:
    """m = -log(lam exp(-d_theta) + (1 - lam) exp(-d_ref)) - d_ref, in (-inf, -log(1 - lam)); (b,), (b,) -> (b,)"""
    return -torch.logaddexp(math.log(lam) + d_ref - d_theta, torch.full_like(d_ref, math.log(1 - lam)))
