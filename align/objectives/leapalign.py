"""LeapAlign: two leaps, from a random step to a later one and from there to the image, differentiated as one path.

    xj_hat = x_k + (tau_j - tau_k) v(x_k),             xj = ST(xj_hat -> x_j)
    x0_hat = xj - tau_j v(q xj + (1 - q) sg(xj)),      x0 = ST(x0_hat -> x_0)
    L = loss(r(decode(x0))) / (max(|x_j - xj_hat|, c) + max(|x_0 - x0_hat|, c))

k < j uniform on the steps of a rollout without gradient, whose states the path passes through (`_paths.py`). LeapAlign,
arXiv 2604.15311: q = 0.3, c = 0.1, gaps are means over dimensions and carry no gradient. Two network calls with
gradient, at any pair of times. Biased low: a leap leaves out what lies before k.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from pydantic import Field

from align.objectives._base import Loss
from align.objectives._paths import PathConfig, PathObjective, closeness, scaled, straight, weighted
from align.policy.roles import Policy
from samplers import Rng


class LeapAlignConfig(PathConfig):
    """How the two leaps hang together."""

    name: Literal["leapalign"] = "leapalign"
    q: float = Field(default=0.3, ge=0, le=1)
    """How much of the gradient passes through the second leap's network into the first; 0: none."""
    floor: float = Field(default=0.1, gt=0)
    """c, the least gap that a row's loss is divided by: rows whose leaps land close count more, up to 1/(2 c)."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield from super().conflicts(recipe)
        sampling = recipe.get("sampling")
        if sampling is not None and sampling.num_steps < 2:
            yield "sampling.num_steps", "is 1, and there are two leaps. Set it to 2 or more."


class LeapAlign(PathObjective):
    """The objective: prompts in, sampled without gradient, two of the steps computed again with it."""

    Config = LeapAlignConfig

    def __call__(self, policy: Policy, batch: Any, context: Any = None) -> Loss:
        rng = Rng(self.seed, batch.indices, batch.step)
        path = self.path(policy, batch.prompts, rng)
        pair = torch.randperm(len(path.steps), generator=rng.shared("leaps"))[:2]
        k, j = sorted(pair.tolist())
        yj_hat = path.y(k) + (path.tau[j] - path.tau[k]) * path.velocity(k)
        yj = straight(yj_hat, path.y(j))
        y0_hat = yj + (path.tau[-1] - path.tau[j]) * path.velocity(j, scaled(yj, self.config.q))
        losses, metrics = self.losses(path.end(y0_hat), batch.prompts)
        weight = closeness([yj_hat - path.y(j), y0_hat - path.y(-1)], self.config.floor)
        metrics |= {"leap_weight": weight, "leap_from": torch.tensor(float(k)), "leap_to": torch.tensor(float(j))}
        return Loss(weighted(weight, losses), torch.ones_like(losses), metrics)
