"""Diffusion-KTO: thumbs up and down on single images; a good one should become easier to denoise than images do on
average, against the reference, and a bad one harder.

    g = -(err_theta - err_ref),   Q = max(0, mean of g),   u = w beta (g - Q),   L = lambda_w (1 - sigmoid(u))

Li et al., "Aligning Diffusion Models by Optimizing Human Utility", arXiv 2404.04465, with their T omega(lambda_t) in
beta: d L/d err = w beta/4 at the reference, as Diffusion-DPO's with the same beta. Every image has a t and an eps of
its own. Q has no gradient and is of the whole update, over all processes. Where it comes from is `baseline`:

    batch        the mean over all rows: the default of the released code, whose text says the next
    mismatched   the mean of g with another row's prompt each: the paper's text, two more passes without gradient
    balanced     the mean of the two labels' means
    none         0

The released code cuts Q off at 0 for `batch` and, without saying so, not for the other two: that is
`baseline_floor: false`.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from align.objectives._base import Loss
from align.objectives._labelled import LabelledConfig, LabelledObjective, Noised
from align.objectives._losses import Utility, utility_loss
from align.objectives._sides import SidedConfig
from align.policy.roles import Policy


class KTOConfig(SidedConfig, LabelledConfig):
    """Diffusion-KTO's settings."""

    name: Literal["kto"] = "kto"
    beta: float = Field(default=5000.0, gt=0)
    """How closely the policy is held to the reference, as in Diffusion-DPO (the paper: 5000, its launcher: 1000)."""
    utility: Utility = "kt"
    """kt: Kahneman and Tversky's, flat on both sides; risk_averse: -log sigmoid(u); risk_seeking: log sigmoid(-u)."""
    baseline: Literal["batch", "mismatched", "balanced", "none"] = "batch"
    """What an image's gain is measured from: all images' mean, that with prompts that do not belong to them, the mean
    of the good ones' and the bad ones' means, or 0."""
    baseline_floor: bool = True
    """Q is never below 0. The released code floors `batch` only."""
    good_weight: float = Field(default=1.0, gt=0)
    """lambda of good images."""
    bad_weight: float = Field(default=1.0, gt=0)
    """lambda of bad images."""


class Context(NamedTuple):
    """What the whole update has said."""

    baseline: float
    """Q"""
    pull: float
    """Median of |beta (g - Q)|: far above 2 nothing learns, since 1 - sigmoid is flat there."""
    reference: dict[int, float]
    """The reference's error of each row of this process, by its sample index: it is not run again."""


class KTO(LabelledObjective):
    """The objective: labelled images in."""

    Config = KTOConfig

    @property
    def ahead(self) -> int:
        """The policy's pass, and with prompts of others both roles'; the reference's own error is kept."""
        return 3 if self.config.baseline == "mismatched" else 1

    @torch.no_grad()
    def before_update(
        self, policy: Policy, micro_batches: Sequence[Any], gather: Callable[[Tensor], Tensor]
    ) -> Context:
        """Q, from the rows of all processes."""
        found, known = [torch.empty(0, 3, dtype=torch.float64)], dict[int, float]()
        other = self.config.baseline == "mismatched"
        for batch in micro_batches:
            rows = self.noised(policy, batch, others=other)
            gain, reference = self._gain(policy, rows)
            base = self._gain(policy, rows, rows.others)[0] if other else gain
            known |= zip(batch.indices, reference.tolist(), strict=True)
            found.append(torch.stack([rows.sign.double(), gain, base], 1).cpu())
        sign, gain, base = gather(torch.cat(found)).unbind(1)
        baseline = self._baseline(sign, base)
        return Context(baseline, float((self.config.beta * (gain - baseline)).abs().median()), known)

    def __call__(self, policy: Policy, batch: Any, context: Context | None = None) -> Loss:
        config, rows = self.config, self.noised(policy, batch)
        q, pull, known = context or Context(0.0, 0.0, {})
        error = self.error(policy, "train", rows)
        if known:
            reference = error.new_tensor([known[i] for i in batch.indices])
        else:
            reference = self.error(policy, "reference", rows)
        scale = rows.scale.to(error)
        u = rows.sign * config.beta * (-scale * (error - reference) - q)
        good = rows.sign > 0
        factor = torch.where(good, config.good_weight, config.bad_weight).to(error)
        losses = factor * utility_loss(u, config.utility)
        said = self.said(rows, error, reference) | {"baseline": torch.tensor(q), "pull": torch.tensor(pull)}
        return Loss(losses, torch.ones_like(losses), said)

    def _gain(self, policy: Policy, rows: Noised, cond: Any = None) -> tuple[Tensor, Tensor]:
        """g (b,) float64, and the reference's error (b,)."""
        error, reference = (self.error(policy, role, rows, cond) for role in ("train", "reference"))
        return -rows.scale * (error.double() - reference.double()), reference

    def _baseline(self, sign: Tensor, gain: Tensor) -> float:
        """Q of the update's labels and gains, (B,) each."""
        config = self.config
        if config.baseline == "none":
            return 0.0
        parts = [gain[side] for side in (sign > 0, sign < 0)] if config.baseline == "balanced" else [gain]
        mean = torch.stack([part.mean() for part in parts if len(part)]).mean()
        return float(mean.clamp(min=0.0)) if config.baseline_floor else float(mean)
