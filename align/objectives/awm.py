"""AWM, advantage weighted matching: regress on the images in proportion to their advantage, away from the bad ones.

    L = A w(l, t) + reference mean (out - out_ref)^2 + old mean (out - out_old)^2,     l = mean (out - u)^2

    uniform   w = l          t    w = t l          t2   w = t^2 l
    ghuber    w = (t/p) ((l + 1e-10)^p - 1e-10^p),  p = 1/4

Xue et al., arXiv 2509.25050: -w(l, t) stands for log p, in PPO's form with one update a rollout, where the ratio is 1
and the clip idle; its gradient is this one's. `old` is a running average of the policy with decay min(rate step, most).
For A < 0 the loss has no lower bound, and this pull is what holds it: one of the two pulls there must be.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from align.objectives._base import Loss, Parts
from align.objectives._forward import Forward, ForwardConfig, one_update_a_rollout
from align.objectives._rl_losses import forward_terms
from align.policy.cast import Snapshot
from align.policy.roles import Policy

SMALL = 1e-10


class AWMConfig(ForwardConfig):
    """The weight of a time, and how closely the policy is held."""

    name: Literal["awm"] = "awm"
    num_draws: int = Field(default=6, ge=1)
    """k, looks at an image in an update."""
    share_times: Literal["image", "group", "update"] = "update"
    """What has the same times; released: all images of the rollout."""
    weight: Literal["uniform", "t", "t2", "ghuber"] = "ghuber"
    """w, with t in flow time."""
    power: float = Field(default=0.25, gt=0, le=1)
    """p of ghuber."""
    reference: float = Field(default=1e-3, ge=0)
    """Weight of the pull to the base."""
    old: float = Field(default=1.0, ge=0)
    """Weight of the pull to the running average."""
    old_decay: float = Field(default=0.3, ge=0, lt=1)
    """Most of its decay."""
    old_rate: float = Field(default=1e-3, ge=0)
    """Growth of its decay an update."""

    @model_validator(mode="after")
    def _held(self) -> "AWMConfig":
        if not self.reference and not self.old:
            raise ValueError("reference and old are both 0: the loss of bad images has no lower bound. Set one of them")
        return self

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield from super().conflicts(recipe)
        yield from one_update_a_rollout(recipe, "advantages weigh the images of the policy itself.")

    def decay(self, step: int) -> float:
        """Of the old role after update number `step`, the first is 1."""
        return min(self.old_rate * step, self.old_decay)


class AWM(Forward):
    """The objective: rewarded images of the policy in."""

    Config = AWMConfig

    def __init__(self, config: AWMConfig, parts: Parts):
        super().__init__(config, parts)
        self.adapters = {"old": Snapshot(decay=config.decay)} if config.old else {}

    def __call__(self, policy: Policy, batch: Any, context: Any = None) -> Loss:
        config, rows, cond = self.config, self.noised(batch), self.model.text.encode(batch.prompts)
        old = self.out(policy, "old" if config.old else "reference", rows, cond)
        out = self.out(policy, "train", rows, cond)
        terms = forward_terms(out, old, rows.u)
        held, said = self.held(out, policy, rows, cond)
        weighted = self._weighted(terms.error, rows.flow_time.to(out))
        losses = batch.advantage.to(out) * weighted + held + config.old * terms.moved
        said |= {"moved": terms.moved.detach(), "error": terms.error.detach()}
        return Loss(losses, torch.ones_like(losses), {**batch.said, **said})

    def _weighted(self, error: Tensor, t: Tensor) -> Tensor:
        """w(l, t), (B,)."""
        p = self.config.power
        if self.config.weight == "ghuber":
            return t / p * ((error + SMALL) ** p - SMALL**p)
        return {"uniform": error, "t": t * error, "t2": t**2 * error}[self.config.weight]
