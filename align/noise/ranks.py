"""ZO-RankSGD: optimise noise from the order that an oracle puts images in, and from nothing else.

    d = sum_i W_i xi_i,   W = (m - 1 - 2 r)/|E| for the image of rank r < k,  -k/|E| for one that is not ranked
    |E| = k (k - 1)/2 + k (m - k)

Tang et al., "Zeroth-Order Optimization Meets Human Feedback: Provable Learning via Ranking Oracles", arXiv 2303.03751.
d is the mean of xi_i - xi_j over the pairs that the order decides, i the better one; so the weights sum to
0 and a shift of all xi changes nothing. (The released code has m - 2 r, which sums to k/|E|.) For a reward that is
linear, E <d, a> = 2/sqrt(pi) = 1.128 along its unit gradient a, for every m and k = m.

A round asks twice. First about m perturbations x + mu xi; then about the incumbent, the best perturbation, and steps
along the running mean of d at lengths eta, eta/2, eta/4, ...: the winner is the next incumbent. Where that is the old
one, the mean goes on; else it is begun anew. Every state but the start, which stays the noise that was drawn, is put
back to the length sqrt(D) that noise has.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from align.interrupt import Interrupt
from align.noise.optimise import Optimised
from align.noise.oracle import Oracle
from align.noise.studio import Row, Studio
from align.policy.noise import Noise
from align.processes import gather_object
from rewards._numerals import counted
from samplers import Rng

Render = Callable[[Tensor], Tensor]
"""States (n, C, h, w) -> images (n, 3, H, W) in [0, 1]."""


def weights(m: int, order: Sequence[int]) -> Tensor:
    """W (m,) float64 of m images, of which `order` names the best, the best first."""
    k = len(order)
    found = torch.full((m,), -float(k), dtype=torch.float64)
    for rank, i in enumerate(order):
        found[i] = m - 1 - 2 * rank
    return found / (k * (k - 1) / 2 + k * (m - k))


def retract(x: Tensor) -> Tensor:
    """Each of (n, ...) at the length sqrt(D)."""
    length = x.flatten(1).norm(dim=1).view(-1, *[1] * (x.ndim - 1))
    return x * (x[0].numel() ** 0.5 / length)


class Search:
    """One image's: the incumbent `x` (C, h, w) and its image, the running mean of the directions, what it has cost.

    `weights` and `retract` are the method's; a comparison may put others in their place."""

    weights = staticmethod(weights)
    retract = staticmethod(retract)

    def __init__(self, config: Any, x: Tensor, render: Render):
        self.config, self.render = config, render
        self.x, self.image = x, render(x[None])[0]
        self.renders = 1
        self.mean, self.averaged = torch.zeros_like(x), 0

    def round(self, oracle: Oracle, xi: Tensor) -> bool:
        """One round with the perturbations xi (m, C, h, w); -> whether the incumbent was beaten."""
        config = self.config
        tried = self.retract(self.x + config.spread * xi)
        images = self._rendered(tried)
        order = oracle(images)[: config.num_ranked or len(xi)]
        w = self.weights(len(xi), order).to(xi)
        direction = (w.view(-1, *[1] * (xi.ndim - 1)) * xi).sum(0)
        self.mean = (self.averaged * self.mean + direction) / (self.averaged + 1)
        self.averaged += 1
        lengths = [config.step * 0.5**i for i in range(config.num_lengths)]
        steps = self.retract(torch.stack([self.x + length * self.mean for length in lengths]))
        states = torch.cat([self.x[None], tried[order[:1]], steps])
        shown = torch.cat([self.image[None], images[order[:1]], self._rendered(steps)])
        best = oracle(shown)[0]
        if best:  # the incumbent stands first: of equals it is the one that stays
            self.x, self.image = states[best], shown[best]
            self.mean, self.averaged = torch.zeros_like(self.mean), 0
        return bool(best)

    def _rendered(self, states: Tensor) -> Tensor:
        self.renders += len(states)
        return self.render(states)


@torch.no_grad()
def ranked(
    studio: Studio,
    rows: Sequence[Row],
    oracle: Callable[[str], Oracle],
    *,
    say: Callable[[str], None],
    frames: bool = False,
    title: str = "",
) -> Optimised:
    """As `optimise`, by the order that `oracle(prompt)` gives; `train.num_updates` rounds. Ctrl-C ends it after the
    current round of all images."""
    started, before = time.perf_counter(), studio.cost()
    recipe, accelerator, part = studio.recipe, studio.accelerator, studio.mine(rows)
    objective: Any = recipe.objective
    config = objective.ranks
    noise = Noise(studio.noise(rows))
    if frames:
        noise.keep_frames()
    mine = list(range(len(rows)))[part]
    searches = {i: Search(config, noise.best[i].clone(), renderer(studio, rows[i])) for i in mine}
    _note(noise, searches, 0)
    done, interrupted, stopped = 0, None, None
    with Interrupt(accelerator) as interrupt:
        while done < recipe.train.num_updates and not interrupted and not stopped:
            for i, search in searches.items():
                rng = Rng(studio.seed, [rows[i].index], done)
                xi = torch.stack([rng.normal(f"rank/{j}", search.x[None])[0] for j in range(config.num_images)])
                if search.round(oracle(rows[i].prompt), xi):
                    noise.best_step[i] = done + 1
            done += 1
            _note(noise, searches, done)
            beaten = sum(int(noise.best_step[i]) == done for i in mine)
            became = f"{beaten} of {counted(len(mine), 'image')} became better"
            say(f"{title}round {done}/{recipe.train.num_updates}: {became}")
            interrupted = interrupt.agreed()
            spent = time.perf_counter() - started
            stopped = _over(objective, spent, spent / done, accelerator)
    seconds = time.perf_counter() - started
    noise.gather(accelerator)
    cost = studio.cost(before)
    cost.free = sum(search.renders for search in searches.values())
    return Optimised(noise, done, seconds, cost, stopped, interrupted)


def renderer(studio: Studio, row: Row) -> Render:
    """What draws one row's image from any of its states."""

    def render(states: Tensor) -> Tensor:
        pixels = studio.draw([row] * len(states), states)
        return (pixels.float() * 255).round() / 255  # what is judged is what would be seen

    return render


def _note(noise: Noise, searches: dict[int, Search], step: int) -> None:
    """The incumbents, where a run looks for the best iterates."""
    for i, search in searches.items():
        noise.best[i] = search.x
        noise.first_reward[i], noise.best_reward[i] = 0.0, 0.0
        if noise.frames is not None:
            seen = (search.image * 255).round().byte().cpu()
            noise.frames[i] = torch.cat([noise.frames[i].view(-1, *seen.shape), seen[None]])


def _over(objective: Any, spent: float, each: float, accelerator: Any) -> str | None:
    """Why the search ends before its last round: the budget, as soon as one process has spent it."""
    budget = objective.budget
    said = f"the budget of {budget:g} s is spent" if budget is not None and spent + each > budget else None
    everyone = gather_object([said]) if accelerator.num_processes > 1 else [said]
    return next((text for text in everyone if text), None)
