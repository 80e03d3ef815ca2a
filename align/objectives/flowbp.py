"""FlowBP: back-propagate through a path of cached velocities, a few of which are computed again with gradient.

    sparse     x0 = ST( y_T + sum_i dtau_i V_i -> x_0 ),  V_i with gradient for K steps, times
               f = sum |dtau| / sum_active |dtau|
    bridge     the same on both sides of a random step j:  yj = ST( compose to j -> y_j ),
               V_j = v(q yj + (1 - q) sg(yj))
    lagrange   two segments k -> j -> 0, each integrated by Lagrange's weights of up to three cached velocities, of
               which the first two carry gradient, the second a quarter of it; j is entered as in bridge

FlowBP, arXiv 2606.11075. The active steps are drawn without replacement, step i (0 the noisiest) with weight (i + 1)^2,
the same for all rows and processes. f makes the sparse gradient of a shift of the velocity exact at every draw. bridge
adds one network Jacobian, weighted q. lagrange weighs rows as LeapAlign does, gaps at least 0.2. Paths: `_paths.py`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from align.objectives._base import Loss
from align.objectives._paths import Path, PathObjective, ShareConfig, closeness, drawn, scaled, straight, weighted
from align.policy.roles import Policy
from samplers import Rng

NODES, SECOND, FLOOR = 3, 0.25, 0.2  # of lagrange: velocities a segment, the second's gradient, the least gap
GAPS = (5, 12, 4)  # twice the shapes of Dirichlet(2.5, 6, 2): a Gamma of shape n/2 is half a sum of n squared normals
LEAST = 0.01  # of lagrange: the least share of a segment that a velocity stands for
LATE = 0.4  # of lagrange: j lies in this last share of the steps (the last 10 of 25)


class FlowBPConfig(ShareConfig):
    """Which path is differentiated."""

    name: Literal["flowbp"] = "flowbp"
    form: Literal["sparse", "bridge", "lagrange"] = "sparse"
    """K steps by themselves; with a bridge through one of them; or two segments of at most four steps in all."""
    active: int = Field(default=3, ge=1)
    """K, steps with gradient (the paper: 3 for sparse, 5 for bridge); lagrange has its own."""
    q: float = Field(default=0.1, ge=0, le=1)
    """bridge and lagrange: how much of the gradient passes through the network at j."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield from super().conflicts(recipe)
        sampling = recipe.get("sampling")
        if sampling is None:
            return
        trained = sampling.num_steps - self.first(sampling.num_steps)
        if self.form != "lagrange" and self.active > trained:
            yield (
                ".active",
                f"{self.active} exceeds the {trained} steps that objective.last_share={self.last_share:g} of "
                f"sampling.num_steps={sampling.num_steps} leaves. Lower it.",
            )
        if self.form == "bridge" and (self.active < 2 or trained < 2):
            yield ".active", "stands on both sides of the bridge. Set it to 2 or more, and leave as many steps."
        if self.form == "lagrange" and sampling.num_steps < 2:
            yield "sampling.num_steps", "is 1, and lagrange has two segments. Set it to 2 or more."


class FlowBP(PathObjective):
    """The objective: prompts in, sampled without gradient, a few velocities computed again with it."""

    Config = FlowBPConfig

    def __call__(self, policy: Policy, batch: Any, context: Any = None) -> Loss:
        rng = Rng(self.seed, batch.indices, batch.step)
        path = self.path(policy, batch.prompts, rng)
        form = {"sparse": self._sparse, "bridge": self._bridge, "lagrange": self._lagrange}[self.config.form]
        y0, gaps = form(path, rng.shared("active"))
        losses, metrics = self.losses(path.end(y0), batch.prompts)
        weight = closeness(gaps, FLOOR) if gaps else torch.ones_like(losses)
        metrics["path_gap"] = (y0.detach() - path.y(-1)).abs().flatten(1).mean(1)
        return Loss(weighted(weight, losses), torch.ones_like(losses), metrics)

    def _sparse(self, path: Path, generator: torch.Generator) -> tuple[Tensor, list[Tensor]]:
        steps = range(self.config.first(len(path.steps)), len(path.steps))
        active = drawn(self.config.active, steps, generator)
        return compose(path, path.y(0), range(len(path.steps)), active, rescale(path, active)), []

    def _bridge(self, path: Path, generator: torch.Generator) -> tuple[Tensor, list[Tensor]]:
        first, count, total = self.config.first(len(path.steps)), self.config.active, len(path.steps)
        j = int(torch.randint(first + 1, total, (), generator=generator))
        before = min(max(1, round(count * (j - first) / (total - first))), count - 1)
        noisy = drawn(before, range(first, j), generator)
        clean = drawn(count - 1 - len(noisy), range(j + 1, total), generator)
        factor = rescale(path, [*noisy, j, *clean])
        yj = straight(compose(path, path.y(0), range(j), noisy, factor), path.y(j))
        entered = scaled(path.velocity(j, scaled(yj, self.config.q)), factor)
        return compose(path, yj + path.steps[j] * entered, range(j + 1, total), clean, factor), []

    def _lagrange(self, path: Path, generator: torch.Generator) -> tuple[Tensor, list[Tensor]]:
        total = len(path.steps)
        k, j = segments(total, self.config.first(total), generator)
        yj_hat = integrate(path, path.y(k), k, j, path.y(k))
        yj = straight(yj_hat, path.y(j))
        y0 = integrate(path, yj, j, total, scaled(yj, self.config.q))
        return y0, [yj_hat - path.y(j), y0 - path.y(-1)]


def rescale(path: Path, active: Sequence[int]) -> float:
    """f = sum |dtau| / sum over the active steps of |dtau|."""
    return float(path.steps.sum() / path.steps[list(active)].sum())


def compose(path: Path, y: Tensor, steps: Sequence[int], active: Sequence[int], factor: float) -> Tensor:
    """y + the steps' dtau V, those of `active` with `factor` times their gradient; (B, ...)."""
    for i in steps:
        y = y + path.steps[i] * (scaled(path.velocity(i), factor) if i in active else path.v[i])
    return y


def segments(num_steps: int, first: int, generator: torch.Generator) -> tuple[int, int]:
    """(k, j), first <= k < j < num_steps: the gaps before, between and after are Dirichlet(2.5, 6, 2), j late."""
    squares = torch.randn(sum(GAPS), generator=generator, dtype=torch.float64).square()
    before, between, after = (part.sum() for part in squares.split(GAPS))
    whole = before + between + after
    j = round(float((before + between) / whole) * num_steps)
    j = min(max(j, num_steps - round(LATE * num_steps), first + 1), num_steps - 1)
    return min(max(round(float(before / whole) * num_steps), first), j - 1), j


def lagrange_weights(nodes: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """w with sum_n w_n p(node_n) = the integral of p from start to end, for polynomials p up to degree n - 1.

    nodes: (n,) float64, distinct -> (n,); their sum is end - start.
    """
    powers = torch.arange(len(nodes), dtype=torch.float64)
    moments = (end - start) ** (powers + 1) / (powers + 1)
    return torch.linalg.solve(((nodes - start)[None] ** powers[:, None]), moments)


def quadrature(path: Path, start: int, end: int) -> tuple[list[int], Tensor]:
    """(steps, their weights): up to three steps evenly spaced on start..end - 1, as many as leave none without weight.

    Of two or three neighbours up to the border one would count 0: the rule is then of a higher order without it.
    """
    for count in range(min(NODES, end - start), 1, -1):
        nodes = [start + round(n * (end - 1 - start) / (count - 1)) for n in range(count)]
        weights = lagrange_weights(path.tau[nodes], path.tau[start], path.tau[end])
        if bool((weights / (path.tau[end] - path.tau[start]) > LEAST).all()):
            return nodes, weights
    return [start], (path.tau[end] - path.tau[start])[None]


def integrate(path: Path, y: Tensor, start: int, end: int, entered: Tensor) -> Tensor:
    """y + the integral of the velocity from step `start` to before `end`; the first is taken at `entered`. (B, ...)"""
    nodes, weights = quadrature(path, start, end)
    y = y + weights[0] * path.velocity(start, entered)
    for n in range(1, len(nodes)):
        y = y + weights[n] * (scaled(path.velocity(nodes[n]), SECOND) if n == 1 else path.v[nodes[n]])
    return y
