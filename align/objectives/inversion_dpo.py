"""Inversion-DPO: DPO along the trajectory that leads from an image to noise under the reference.

Diffusion-DPO replaces the unknown path x_T..x_0 of an image by forward noising. Li et al., "Inversion-DPO", arXiv
2507.11554, take the path that deterministic DDIM inversion under the reference gives. x_i below are its states, at the
times t_0 < t_1 < ... < t_N from data to noise, and the loss is align/objectives/_losses.py's with

    anchored    err(y) = mean_i |out(x_i) - target(x_0, eps_i)|^2,   eps_i = (x_i - alpha_i x_0)/sigma_i
    residual    err(y) = mean_i |out(x_i) - target(x0_i, eps_i)|^2, the two that lie on both x_i and its neighbour:
                x_(i-1) = alpha_(i-1) x0_i + sigma_(i-1) eps_i,   x_i = alpha_i x0_i + sigma_i eps_i
    published   log ratio(y) = -1/2 mean_i |eps(x_i) - eps_ref(x_i)|^2/(2 alpha_i^2)

`published` is what the released code computes, for reproductions: with sign=released in the opposite sense of the
derivation. Its gradient at eps = eps_ref is zero, so a fresh adapter is moved by rounding alone. `residual` has the
same fault where the inversion is exact and unguided, since its eps_i is then eps_ref(x_i); `anchored` never has.

Of the N steps an update trains on `num_train_steps`, drawn for each pair without replacement, every one as likely as
another: their mean is unbiased for the mean over all.
"""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from align.objectives._base import Loss, Parts
from align.objectives._inverted import InversionConfig, trajectories
from align.objectives._losses import DPOForm, dpo, guard_factor, log_ratio_of_errors
from align.objectives._preference import Alarm, Alarmed, PreferenceConfig, described, dropped, error_scale
from align.policy.roles import Policy
from samplers import Rng, broadcast, generator, split, target


class InversionDPOConfig(PreferenceConfig):
    """Inversion-DPO's settings."""

    name: Literal["inversion_dpo"] = "inversion_dpo"
    beta: float = Field(default=5000.0, gt=0)
    """How closely the policy is held to the reference: the paper's convention of Diffusion-DPO."""
    form: DPOForm = "sigmoid"
    """As in Diffusion-DPO."""
    compare: Literal["anchored", "residual", "published"] = "anchored"
    """What policy and reference are compared on; see align/objectives/inversion_dpo.py."""
    sign: Literal["derived", "released"] = "derived"
    """compare=published only."""
    num_train_steps: int = Field(default=1, ge=1)
    """Steps of a trajectory that an update trains on."""
    inversion: InversionConfig = InversionConfig()
    """How images are taken to noise."""

    def steps(self) -> int:
        return min(self.num_train_steps, self.inversion.num_steps)


class InversionDPO(Alarmed):
    """The objective: preference pairs in, their images inverted at the first visit."""

    Config = InversionDPOConfig

    def __init__(self, config: InversionDPOConfig, parts: Parts):
        self.config, self.seed = config, parts.seed
        numel = torch.Size(parts.model.latent_shape()).numel()
        size = (config.inversion.num_steps + 1) * numel * 4 / 1024**2
        self.notes = [f"inversions: {size:.3g} MiB of disk for each image of the pairs"]
        self.alarm = Alarm(config.alarm if config.compare == "anchored" else None)

    def __call__(self, policy: Policy, batch: Any, context: Any = None) -> Loss:
        config, pairs = self.config, batch.load()
        times, states = trajectories(config.inversion, policy, batch, pairs)
        steps = torch.tensor([self._steps(i, len(times) - 1) for i in batch.indices], device=states.device)  # (b, k)
        k = steps.shape[1]
        both = torch.cat([steps, steps])
        rows = torch.arange(len(both), device=states.device)[:, None]
        x_t, x_s = (states[i, rows].flatten(0, 1) for i in (both, both - 1))  # (2 b k, C, h, w), a row's k together
        t, s = (times.to(states.device)[i].flatten() for i in (both, both - 1))
        anchors = states[0].repeat_interleave(k, 0)
        cond_w, cond_l = pairs.conds(dropped(Rng(self.seed, batch.indices, batch.step), config.prompt_dropout))
        cond = cond_w.cat(cond_l).repeat(k)
        role = policy.role("reference")
        with torch.no_grad():
            out_ref = role(x_t, t, cond)
        out = policy.role("train")(x_t, t, cond)
        if config.compare == "published":
            goal, weight = out_ref, _published_weight(role, t)
        else:
            goal = _goal(role, x_t, x_s, anchors, t, s, anchored=config.compare == "anchored")
            weight = error_scale(config, role.schedule, role.kind, t)
        residual, residual_ref = (o.to(torch.promote_types(o.dtype, torch.float32)) - goal for o in (out, out_ref))
        error = _mean_over_steps(residual, weight, k)
        reference = _mean_over_steps(residual_ref, weight, k)
        ratio_w, ratio_l = log_ratio_of_errors(error, reference).chunk(2)
        if config.guard:
            gradient_w, gradient_l = (residual.detach() * broadcast(weight, residual)).unflatten(0, (-1, k)).chunk(2)
            f = guard_factor(gradient_w, gradient_l)
            ratio_l = f * ratio_l + (1 - f) * ratio_l.detach()
        sign = -1.0 if config.compare == "published" and config.sign == "released" else 1.0
        losses = dpo(sign * ratio_w, sign * ratio_l, beta=config.beta, form=config.form)
        margin = sign * config.beta * (ratio_w - ratio_l)
        mean_t = times.to(states.device)[steps].mean(1)
        return Loss(losses, torch.ones_like(losses), described(margin, mean_t, error.chunk(2), reference.chunk(2)))

    def _steps(self, index: int, total: int) -> list[int]:
        """The numbers in 1..N of the steps that sample `index` trains on."""
        order = torch.randperm(total, generator=generator(self.seed, "steps", index))
        return (order[: self.config.steps()].sort().values + 1).tolist()


def _goal(role: Any, x_t: Tensor, x_s: Tensor, x0: Tensor, t: Tensor, s: Tensor, *, anchored: bool) -> Tensor:
    """What the network should say at x_t, (n, ...): of the image itself, or of the step to its neighbour x_s."""
    level = role.schedule(t)
    alpha_t, sigma_t = (broadcast(c, x_t) for c in level)
    if anchored:
        eps = (x_t - alpha_t * x0) / sigma_t
    else:
        alpha_s, sigma_s = (broadcast(c, x_t) for c in role.schedule(s))
        det = alpha_s * sigma_t - alpha_t * sigma_s
        x0, eps = (sigma_t * x_s - sigma_s * x_t) / det, (alpha_s * x_t - alpha_t * x_s) / det
    return target(x0, eps, level[0], level[1], role.kind)


def _published_weight(role: Any, t: Tensor) -> Tensor:
    """|d eps|^2/(2 alpha^2) for an error in the network's own prediction, (n,) float64."""
    alpha, sigma = role.schedule(t)
    one = torch.ones_like(alpha)
    _, per_out = split(one, torch.zeros_like(one), alpha, sigma, role.kind)  # d eps/d out
    return per_out.square() / (2 * alpha.square())


def _mean_over_steps(residual: Tensor, weight: Tensor, k: int) -> Tensor:
    """(2 b k, ...) -> weighted mean squares, (2 b,)."""
    return (residual.square().flatten(1).mean(1) * weight.to(residual)).unflatten(0, (-1, k)).mean(1)
