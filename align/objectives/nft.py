"""DiffusionNFT: two implicit policies, one better and one worse than the old, each regressed on its share of images.

    v+- = v_old +- b (v_theta - v_old),     r = (A/A_max + 1)/2 in [0, 1]
    L = gain [ r e(v+) + (1 - r) e(v-) ] + reference mean (out - out_ref)^2
    e(v) = mean (x0_hat(v) - x_0)^2 / sg( mean |x0_hat(v) - x_0| )

on x_t re-noised from images of `old`, a running average of the policy: old <- d old + (1 - d) theta after the last
update on a rollout, d = min(rate max(0, step - wait), most). No likelihood, any solver, no guidance. Zheng et al.,
arXiv 2509.16117, eq. 6, with the released code's normalisation and gain = A_max/b, a mere factor of the loss.
"""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from align.objectives._base import Loss, Parts
from align.objectives._forward import Forward, ForwardConfig, Noised
from align.objectives._rl_losses import forward_terms
from align.policy.cast import Snapshot
from align.policy.roles import Policy


class NFTConfig(ForwardConfig):
    """The contrast of the two policies, and how the old one follows."""

    name: Literal["nft"] = "nft"
    b: float = Field(default=1.0, gt=0, le=1)
    """How far apart they are (released: 1 for one reward, 0.1 for several)."""
    most: float = Field(default=5.0, gt=0)
    """A_max: the advantage at which r is 1; a smaller one means more contrast."""
    gain: float | None = Field(default=None, gt=0)
    """Factor of the loss. Default: A_max/b, as released."""
    reference: float = Field(default=1e-4, ge=0)
    """Weight of the pull to the base."""
    normalise: bool = True
    """Divide each branch by its own mean error, so that no time outweighs another; false: the plain squares."""
    old_decay: float = Field(default=0.5, ge=0, lt=1)
    """Most of the old role's decay (released: 0.5; 0.999 for OCR)."""
    old_rate: float = Field(default=1e-3, ge=0)
    """Growth of the decay an update (0.0075 for OCR); old follows after the last update on a rollout."""
    old_wait: int = Field(default=0, ge=0)
    """Updates before it grows (75 for OCR)."""

    def decay(self, step: int) -> float:
        """Of the old role after update number `step`, the first is 1."""
        return min(self.old_rate * max(0, step - self.old_wait), self.old_decay)


class NFT(Forward):
    """The objective: rewarded images of the old policy in."""

    Config = NFTConfig

    def __init__(self, config: NFTConfig, parts: Parts):
        super().__init__(config, parts, role="old")
        self.adapters = {"old": Snapshot(decay=config.decay, draws=True)}

    def __call__(self, policy: Policy, batch: Any, context: Any = None) -> Loss:
        config, rows = self.config, self.noised(batch)
        cond = self.model.text.encode(batch.prompts)
        old = self.out(policy, "old", rows, cond)
        out = self.out(policy, "train", rows, cond)
        terms = forward_terms(rows.x0_hat(out), rows.x0_hat(old), rows.x0)
        r = ((batch.advantage.to(out) / config.most).clamp(-1, 1) + 1) / 2
        plus, minus = (terms.mixed(b) / self._size(rows, out, old, b) for b in (config.b, -config.b))
        gain = config.most / config.b if config.gain is None else config.gain
        held, said = self.held(out, policy, rows, cond)
        losses = gain * (r * plus + (1 - r) * minus) + held
        said |= {"moved": terms.moved.detach(), "error": terms.error.detach()}
        return Loss(losses, torch.ones_like(losses), {**batch.said, **said})

    @torch.no_grad()
    def _size(self, rows: Noised, out: Tensor, old: Tensor, b: float) -> Tensor | float:
        """(B,): mean |x0_hat(v_old + b d) - x_0|."""
        if not self.config.normalise:
            return 1.0
        mixed = rows.x0_hat(old + b * (out - old))
        return (mixed - rows.x0).abs().flatten(1).mean(1).clamp(min=1e-5)
