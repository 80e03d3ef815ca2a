"""Windows: which steps of a rollout are stochastic, and so have a density that can be trained. The others are DDIM(0).

    all          every step that has noise to give
    first_half   `size` consecutive ones within the first half of the grid, drawn for each rollout
    random       `size` consecutive ones anywhere
    sliding      `size` consecutive ones from step  stride floor(number/every)  of rollout `number`: from noise to data

first_half is Flow-GRPO-Fast (github.com/yifan123/flow_grpo), sliding is MixGRPO's progressive window (Li et al.,
arXiv 2507.21802): size 4 of 25 steps, stride 1, every 25. A step that ends on data (sigma_s = 0) is left out: noise
would stay in the image, and DDIM and CPS have none there, hence no density.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from samplers.ddim import ddim
from samplers.grids import Grid
from samplers.laws import Law, noisy
from samplers.schedule import Schedule
from samplers.transition import Transition

Start = Literal["all", "first_half", "random", "sliding"]


@dataclass(frozen=True)
class Window:
    """size: number of consecutive steps, not looked at where start is "all"."""

    start: Start = "all"
    size: int = 2
    stride: int = 1
    every: int = 25

    def decide(self, possible: Sequence[bool], number: int, generator: torch.Generator) -> list[bool]:
        """One bool a step for rollout `number`; `possible` says which have a density, and `generator` is shared by all
        rows and processes."""
        steps = [i for i, flag in enumerate(possible) if flag]
        if self.start == "all":
            return list(possible)
        reach = self.reach(possible)
        if not 1 <= self.size <= reach:
            raise ValueError(f"a window of {self.size} steps does not fit into {reach}. Set its size <= {reach}.")
        last = reach - self.size
        if self.start == "sliding":
            first = min(self.stride * (number // self.every), last)
        else:
            first = int(torch.randint(0, last + 1, (), generator=generator))
        chosen = set(steps[first : first + self.size])
        return [i in chosen for i in range(len(possible))]

    def reach(self, possible: Sequence[bool]) -> int:
        """The largest size that fits."""
        steps = sum(possible)
        return min(steps, len(possible) // 2) if self.start == "first_half" else steps


def densities(law: Law, schedule: Schedule, grid: Grid) -> list[bool]:
    """Which steps of a grid have a density under a law and do not end on data: one bool a step."""
    alphas, sigmas = schedule(grid.times)
    std, _ = law(alphas[:-1], sigmas[:-1], alphas[1:], sigmas[1:])
    return ((std > 0) & (sigmas[1:] > 0)).tolist()


class Windowed:
    """The step rule of one trajectory: `law` at the steps that are True, DDIM(0) at the others."""

    def __init__(self, law: Law, steps: Sequence[bool]):
        self._inside, self._steps, self._taken = noisy(law), steps, 0

    def __call__(
        self, x0: Tensor, eps: Tensor, alpha_t: Tensor, sigma_t: Tensor, alpha_s: Tensor, sigma_s: Tensor
    ) -> Transition:
        """One step t -> s. x0, eps: (B, ...); alpha, sigma: ()."""
        rule = self._inside if self._steps[self._taken] else ddim
        self._taken += 1
        return rule(x0, eps, alpha_t, sigma_t, alpha_s, sigma_s)
