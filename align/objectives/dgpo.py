"""DGPO: Diffusion-DPO for a whole group: its better images should have become easier to denoise than its worse ones.

    delta_i = err_theta,i - err_ref,i,   err = mean (out - u)^2 at t and eps that the group shares
    S = (beta/G) sum_i A_i delta_i;      L = sg(sigmoid(S)) sum_i A_i err_theta,i + reference mean (out - out_ref)^2

Luo et al., "Reinforcing Diffusion Models by Direct Group Preference Optimization", arXiv 2510.08425. A sums to 0 in a
group; for two images it is Diffusion-DPO's gradient divided by beta/2. S is of the whole group, wherever its rows are:
it is summed over the processes before the update.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from align.objectives._base import Loss
from align.objectives._forward import Forward, ForwardConfig
from align.objectives._rl_losses import Margins, forward_terms, margins
from align.policy.roles import Policy


class DGPOConfig(ForwardConfig):
    """The temperature of the groups' preferences."""

    name: Literal["dgpo"] = "dgpo"
    beta: float = Field(default=100.0, gt=0)
    """How closely the policy is held to the reference, on errors that are means over dimensions."""
    share_times: Literal["image", "group", "update"] = "group"
    """What has the same times; the method's own: the group."""
    share_noise: bool = True
    """Whether a group's images are noised alike."""
    reference: float = Field(default=1e-3, ge=0)
    """Weight of the pull to the base."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield from super().conflicts(recipe)
        if getattr(recipe.get("data"), "normalise", "") == "running":
            yield (
                "data.normalise",
                "is running, whose advantages do not sum to 0 in a group, and S is a margin between a group's images. "
                "Set it to global or group.",
            )


class DGPO(Forward):
    """The objective: groups of rewarded images in."""

    Config = DGPOConfig
    ahead = 2

    @torch.no_grad()
    def before_update(
        self, policy: Policy, micro_batches: Sequence[Any], gather: Callable[[Tensor], Tensor]
    ) -> Margins:
        """Every group's S, from all of its rows on all processes."""
        found = []
        for batch in micro_batches:
            rows, cond = self.noised(batch), self.model.text.encode(batch.prompts)
            reference, out = (self.out(policy, role, rows, cond) for role in ("reference", "train"))
            terms = forward_terms(out, reference, rows.u)
            found.append((batch, terms.error - terms.error_old))
        return margins(found, self.config.beta, gather)

    def __call__(self, policy: Policy, batch: Any, context: Margins | None = None) -> Loss:
        rows, cond = self.noised(batch), self.model.text.encode(batch.prompts)
        out = self.out(policy, "train", rows, cond)
        keys = list(zip(batch.groups, batch.slot.tolist(), strict=True))
        margin = torch.tensor([(context or {}).get(key, 0.0) for key in keys], device=out.device)  # 0: at the reference
        error = (out - rows.u).square().flatten(1).mean(1)
        held, said = self.held(out, policy, rows, cond)
        losses = margin.sigmoid() * batch.advantage.to(out) * error + held
        said |= {"margin": margin, "error": error.detach()}
        return Loss(losses, torch.ones_like(losses), {**batch.said, **said})
