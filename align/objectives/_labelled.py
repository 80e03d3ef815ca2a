"""What the objectives share that train on single labelled images: rows noised each at a time and by a noise of its own,
and their errors."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from align.objectives._base import Parts
from align.objectives._preference import (
    NUM_BINS,
    UNLIKE,
    Alarm,
    Alarmed,
    NoisedConfig,
    TimesConfig,
    dropped,
    error_scale,
    masks_apart,
)
from align.policy.roles import Policy
from samplers import Rng, add_noise, target


class LabelledConfig(NoisedConfig):
    """Settings of an objective that trains on noised images, each with a thumb up or down."""

    times: TimesConfig = TimesConfig()
    """At which times images are noised."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield from masks_apart(recipe, UNLIKE)
        data = recipe.get("data")
        if data is not None and not hasattr(data, "labels"):
            yield "data", "holds no labelled images. Use `data: {name: labels, labels: FOLDER}`; it reads pairs too."


class Noised(NamedTuple):
    """b rows; nothing of it has a graph."""

    x_t: Tensor
    t: Tensor
    """(b,) float64"""
    goal: Tensor
    """(b, ...): what the network should say."""
    cond: Any
    others: Any
    """Cond of other rows' prompts, or None."""
    sign: Tensor
    """(b,): +1 of a good image, -1 of a bad one."""
    scale: Tensor
    """(b,): of loss_space and t_weighting."""


class LabelledObjective(Alarmed):
    """Base: the rows of a micro-batch, their errors under a role, metrics and the alarm."""

    def __init__(self, config: Any, parts: Parts):
        self.config, self.seed = config, parts.seed
        self.alarm = Alarm(config.alarm)

    @torch.no_grad()
    def noised(self, policy: Policy, batch: Any, *, others: bool = False) -> Noised:
        """The rows at their times; `others`: with the prompts of other rows beside their own."""
        config, role, pictures = self.config, policy.role("reference"), batch.load()
        rng, mean = Rng(self.seed, batch.indices, batch.step), pictures.image.mean
        x0, eps = pictures.image.sample(rng.normal("vae", mean)), rng.normal("eps", mean)
        t = config.times.draw(rng, role.schedule, mean)
        rows = dropped(rng, config.prompt_dropout)
        alpha, sigma = role.schedule(t)
        good = 1.0 if not getattr(config, "swapped", False) else -1.0
        sign = torch.tensor([good if liked else -good for liked in batch.good], device=mean.device)
        return Noised(
            add_noise(role.schedule, x0, eps, t),
            t,
            target(x0, eps, alpha, sigma, role.kind),
            pictures.conds(rows),
            pictures.conds(rows, others=True) if others else None,
            sign,
            error_scale(config, role.schedule, role.kind, t),
        )

    def residual(self, policy: Policy, role: str, rows: Noised, cond: Any = None) -> Tensor:
        """out - goal, (b, ...) in float32 or wider; all but "train" without graph."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and role == "train"):
            out = policy.role(role)(rows.x_t, rows.t, rows.cond if cond is None else cond)
            return out.to(torch.promote_types(out.dtype, torch.float32)) - rows.goal

    def error(self, policy: Policy, role: str, rows: Noised, cond: Any = None) -> Tensor:
        """(b,): mean over dimensions of the squared residual."""
        return self.residual(policy, role, rows, cond).square().flatten(1).mean(1)

    def said(self, rows: Noised, error: Tensor, reference: Tensor) -> dict[str, Tensor]:
        """Metrics by label: errors, and above the reference's; accuracy: good ones below it and bad ones above."""
        error, gap = error.detach(), (error - reference).detach()
        along = -rows.sign * gap
        said = {"accuracy": (along > 0).double() + 0.5 * (along == 0).double()}
        if rows.t.is_meta:  # a rehearsal: there are no numbers to sort
            return said
        for side, chosen in (("w", rows.sign > 0), ("l", rows.sign < 0)):
            said |= {f"err_{side}": error[chosen], f"gap_{side}": gap[chosen]}
        bins = (rows.t * NUM_BINS).long().clamp(max=NUM_BINS - 1)
        return said | {f"accuracy/t{i}": said["accuracy"][bins == i] for i in range(NUM_BINS)}
