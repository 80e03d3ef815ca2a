"""Pure, unreduced formulas of policy gradients: tensors in, (B,) out.

Steps of a rollout (Schulman et al. (PPO), arXiv 1707.06347, eq. 7), R the ratio of the policy to the one that drew:

    score     -A log p                                 its gradient is REINFORCE's
    ppo       max(-A R, -A clip(R, 1 - c, 1 + c))      its gradient at R = 1 is score's

Finished images, noised again (the forward process). With d = v_theta - v_old, e = v_old - u, u the regression target,
all three methods are made of the same two numbers, means over the dimensions of a sample:

    NFT    r |v+ - u|^2 + (1 - r) |v- - u|^2 = b^2 |d|^2 + |e|^2 + 2 b (2 r - 1) <d, e>,     v+- = v_old +- b d
    AWM    A |v_theta - u|^2                 = A |d|^2 + A |e|^2 + 2 A <d, e>
    DGPO   w A |v_theta - u|^2,  sum A = 0 in a group,  w = sigmoid of the group's margin

so all climb along <d, e>; NFT's |d|^2 holds the policy to the old one, AWM's has the sign of A.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


def ppo(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """(B,). ratio, advantage: (B,); clip: c > 0."""
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))


class Terms(NamedTuple):
    """(B,) each, means over the dimensions of a sample."""

    along: Tensor
    """<d, e>"""
    moved: Tensor
    """|d|^2"""
    error_old: Tensor
    """|e|^2"""

    @property
    def error(self) -> Tensor:
        """|v_theta - u|^2"""
        return self.mixed(1.0)

    def mixed(self, b: float) -> Tensor:
        """|v_old + b d - u|^2"""
        return self.error_old + 2 * b * self.along + b**2 * self.moved


def forward_terms(v_theta: Tensor, v_old: Tensor, u: Tensor) -> Terms:
    """v_theta with graph, v_old and u without: (B, ...) each, in any space that is affine in the network's output."""
    d, e = v_theta - v_old, v_old - u
    return Terms(*(x.flatten(1).mean(1) for x in (d * e, d.square(), e.square())))


Margins = dict[tuple[int, int], float]
"""(group, look) -> S"""


def margins(found: Sequence[tuple[Any, Tensor]], beta: float, gather: Callable[[Tensor], Tensor]) -> Margins:
    """S = (beta/G) sum_i A_i delta_i of every group and look, whatever processes and micro-batches its rows lie in.

    found: (micro-batch, delta (b,)), delta the error less the reference's.
    """
    rows = [torch.empty(0, 3, dtype=torch.float64)]
    for batch, delta in found:
        gain = batch.advantage.double() * delta.double().cpu()
        rows.append(torch.stack([torch.tensor(batch.groups).double(), batch.slot.double(), gain], 1))
    everywhere = gather(torch.cat(rows))
    said: Margins = {}
    for key in everywhere[:, :2].unique(dim=0):
        own = everywhere[(everywhere[:, :2] == key).all(1), 2]
        said[int(key[0]), int(key[1])] = float(beta * own.sum() / len(own))
    return said
