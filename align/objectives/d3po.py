"""D3PO: of two images drawn from one noise the better one is preferred, and with it every step that led to it.

    L = -log sigmoid( beta (log R_w - log R_l) ),   R = clamp(p_theta(x_s | x_t)/p_ref(x_s | x_t), 1 - c, 1 + c)

Yang et al., "Using Human Feedback to Fine-tune Diffusion Models without Any Reward Model", arXiv 2311.13231,
with beta = 0.1 and c = 0.1 as released; p is a mean over dimensions. Here L is the mean over all pairs of a group and
all of its steps, where the released code takes an optimiser step for each.

The argument of the sigmoid is at most 0.1 log(1.1/0.9) = 0.0201: the loss stays within [0.683, 0.703] and its curve
says nothing. The metrics do: `log_ratio`, the share `clamped`, and `accuracy`, the pairs' steps that are ordered right.

A pair's two images are rows of the update wherever they are: log-ratios are gathered before it, and each row then gets
the gradient that all of its pairs have for it, sum of d L/d log R, so that a step of an image is run once.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from align.models._base import device_of
from align.objectives._base import Loss, Parts
from align.objectives._losses import clamped, dpo
from align.objectives._transitions import Steps, conflicts
from align.policy.roles import Policy
from align.registry import ComponentConfig
from samplers.guidance import CfgGrad


class D3POConfig(ComponentConfig):
    """D3PO's settings; eta, guidance and steps are those of `sampling`."""

    name: Literal["d3po"] = "d3po"
    beta: float = Field(default=0.1, gt=0)
    """How closely the policy is held to the reference, on log-densities that are means over dimensions."""
    clamp: float | None = Field(default=0.1, gt=0, lt=1)
    """c; null: no clamp."""
    cfg_grad: CfgGrad = "both"
    """Branches of a guided output that carry gradient; cond and none spare the unconditional one."""
    tolerance: float | None = Field(default=None, gt=0)
    """Largest gap between a step's log-probability at the rollout and at the first update after it. Default: 1e-4, of a
    network in half precision or quantised 0.02."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield from conflicts(recipe)
        data: Any = recipe.get("data")
        if getattr(data, "group_size", 2) < 2:
            yield "data.group_size", "is 1: an image has no other to be compared with. Set it to 2 or more."
        if hasattr(data, "train_fraction") and data.train_fraction < 1:
            yield "data.train_fraction", "below 1 leaves steps without their pair. Set it to 1."


Key = tuple[int, int]


class Row(NamedTuple):
    """What the pairs of one row say: their number, the mean of their losses, the sum of d L/d log R, and the share that
    is ordered right."""

    pairs: int
    loss: float
    slope: float
    right: float


class D3PO(Steps):
    """The objective: groups of rewarded images with the steps that drew them in."""

    Config = D3POConfig

    def __init__(self, config: D3POConfig, parts: Parts):
        super().__init__(config, parts, cfg_grad=config.cfg_grad)
        self.ahead = 2 * parts.sampling.num_rows // parts.sampling.num_calls

    @torch.no_grad()
    def before_update(
        self, policy: Policy, micro_batches: Sequence[Any], gather: Callable[[Tensor], Tensor]
    ) -> dict[Key, Row]:
        """{(image's sample index, step): what its pairs say}, from the rows of all processes."""
        found = [torch.empty(0, 5, dtype=torch.float64)]
        for batch in micro_batches:
            ratio = clamped(self._log_ratio(policy, batch, check=True), self.config.clamp).double().cpu()
            numbers = [torch.tensor(n).double() for n in (batch.groups, batch.slot.tolist(), batch.indices)]
            found.append(torch.stack([*numbers, batch.advantage.double().cpu(), ratio], 1))
        return self._compared(gather(torch.cat(found)))

    def _compared(self, rows: Tensor) -> dict[Key, Row]:
        """rows: (n, 5) of group, step, sample index, advantage and log R."""
        said: dict[Key, Row] = {}
        for key in rows[:, :2].unique(dim=0):
            own = rows[(rows[:, :2] == key).all(1)]
            sums = {int(i): [0.0] * 4 for i in own[:, 2]}
            for a, b in itertools.combinations(own, 2):
                w, loser = (a, b) if a[3] > b[3] else (b, a)
                if w[3] == loser[3]:
                    continue
                z = w[4] - loser[4]
                loss = float(dpo(w[4], loser[4], beta=self.config.beta))
                slope = float(-self.config.beta * torch.sigmoid(-self.config.beta * z))
                right = float(z > 0) + 0.5 * float(z == 0)
                for row, sign in ((w, 1.0), (loser, -1.0)):
                    for place, value in enumerate((1.0, loss, sign * slope, right)):
                        sums[int(row[2])][place] += value
            for index, (pairs, loss, slope, right) in sums.items():
                n = max(pairs, 1.0)
                said[index, int(key[1])] = Row(int(pairs), loss / n, slope, right / n)
        return said

    def __call__(self, policy: Policy, batch: Any, context: dict[Key, Row] | None = None) -> Loss:
        log_ratio = self._log_ratio(policy, batch)
        keys = zip(batch.indices, batch.slot.tolist(), strict=True)
        told = [(context or {}).get(key, Row(1, 0.0, 0.0, 0.5)) for key in keys]
        columns = zip(*((row.pairs / 2, row.loss, row.slope) for row in told), strict=True)
        weight, loss, slope = (torch.tensor(column).to(log_ratio) for column in columns)
        right = torch.tensor([row.right for row in told if row.pairs]).to(log_ratio)  # of rows that have a pair
        inside = clamped(log_ratio, self.config.clamp)
        # the update divides by the sum of weights, which is the number of pairs: two rows of half of their own each
        share = slope / weight.clamp(min=0.5)
        losses = loss + share * (inside - inside.detach())
        said = {"log_ratio": log_ratio.detach().abs(), "clamped": (inside != log_ratio).float(), "accuracy": right}
        return Loss(losses, weight, {**batch.said, **said})

    def _log_ratio(self, policy: Policy, batch: Any, *, check: bool = False) -> Tensor:
        """log p_theta(x_s)/p_ref(x_s) of the rows, (B,). check: also hold the policy's to those of the rollout."""
        cond = self.model.text.encode(batch.prompts)
        x_s = batch.x_s.to(device_of(self.model.network))
        with torch.no_grad():
            reference = self.transition(policy, "reference", batch, cond).log_prob(x_s)
        step = self.transition(policy, "train", batch, cond)
        log_prob = step.log_prob(x_s)
        if check:
            self.old(batch, step, log_prob)
        return log_prob - reference
