"""Differential evolution, a generation an update: for losses without gradient (DE/rand/1/bin).

    v = a + F (b - c),  each coordinate of a trial from v with probability C, else from its parent

Storn & Price, Journal of Global Optimization 11 (1997). Parents and trials are judged on the same images of the update,
new ones at every update, so that no candidate stays for having met easy noise once.
"""

from typing import Any

import torch
from torch import Tensor

from samplers import generator

F, C = 0.5, 0.9


class Evolution:
    """`size` parents around `start` (d,), the first being it, each with a trial; lower is better."""

    def __init__(self, start: Tensor, size: int, spread: Tensor, seed: int):
        self.seed, self.generation = seed, 0
        rng = generator(seed, "evolution", 0)
        noise = torch.randn(size, len(start), generator=rng, dtype=torch.float64)
        noise[0] = 0
        self.parents = start.double() + spread.double() * noise
        self.trials = self._trials()

    def candidates(self) -> Tensor:
        """(2 size, d): parents, then trials."""
        return torch.cat([self.parents, self.trials])

    def place(self, numbers: Tensor) -> int:
        """Which of the parents these numbers (d,) are, the start or what `select` has given; 0 of a rehearsal's."""
        return 0 if numbers.is_meta else int((self.parents - numbers.detach().cpu()).abs().sum(1).argmin())

    def select(self, losses: Tensor) -> Tensor:
        """losses (2 size,) of the candidates -> the best of those that stay (d,)."""
        parents, trials = torch.nan_to_num(losses.double(), nan=float("inf")).chunk(2)
        better = trials < parents
        self.parents = torch.where(better[:, None], self.trials, self.parents)
        best = self.parents[int(torch.minimum(parents, trials).argmin())].clone()
        self.generation += 1
        self.trials = self._trials()
        return best

    def _trials(self) -> Tensor:
        rng, (n, d) = generator(self.seed, "evolution/trials", self.generation), self.parents.shape
        made = []
        for i in range(n):
            others = torch.randperm(n - 1, generator=rng)[:3]
            a, b, c = self.parents[others + (others >= i)]
            taken = torch.rand(d, generator=rng) < C
            taken[int(torch.randint(d, (), generator=rng))] = True
            made.append(torch.where(taken, a + F * (b - c), self.parents[i]))
        return torch.stack(made)

    def state_dict(self) -> dict[str, Any]:
        return {"parents": self.parents, "trials": self.trials, "generation": self.generation}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.parents, self.trials, self.generation = state["parents"], state["trials"], state["generation"]
