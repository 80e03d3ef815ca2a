"""Paths that are cheap to differentiate and end where the sampler ended: straight-through composition.

    ST(a -> b) = sg(b) + (a - sg(a))        the value of b, bit for bit, with the gradient of a

A rollout without gradient is cached, x_i and the velocity v_i of each step. In y = x/(alpha + sigma) and tau = sigma/
(alpha + sigma) every schedule is a flow, dy/dtau = v = eps - x0, and one step of DDIM or Euler is y + dtau v; so a path
from noise to image is a sum of velocities, of which a few are computed again with gradient. On a rectified flow y is x.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from align.objectives._reward import RewardObjective, RewardObjectiveConfig
from align.policy.roles import Policy
from align.sampling import rollout
from align.sampling.problems import LINEAR
from samplers import Denoiser, Rng, broadcast, call_with_graph, flow_time, split
from samplers.guidance import CfgGrad


class PathConfig(RewardObjectiveConfig):
    """What passes through the network calls of a path."""

    cfg_grad: CfgGrad = "cond"
    """Branches of a guided velocity that carry gradient: the conditional one alone, as published, or both."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        sampling = recipe.get("sampling")
        if sampling is None:
            return
        yield from sampling.alone()
        if sampling.step_rule not in LINEAR:
            yield (
                "sampling.step_rule",
                f"is {sampling.step_rule}, and the path is put together from single velocities. Use ddim or euler.",
            )
        if sampling.stochastic:
            yield (
                "sampling.noise_law" if sampling.noise_law else "sampling.eta",
                "draws noise at each step, and the path is that of the ODE. Set eta to 0.",
            )


def straight(a: Tensor, b: Tensor) -> Tensor:
    """ST(a -> b): b's value, a's gradient; both (B, ...)."""
    return scaled(a, 1.0, b)


def scaled(a: Tensor, factor: float, value: Tensor | None = None) -> Tensor:
    """The value of a (or of `value`), with `factor` times the gradient of a. For a network's input: factor a + (1 -
    factor) sg(a)."""
    return (a if value is None else value).detach() + factor * (a - a.detach())


@dataclass(frozen=True)
class Path:
    """A cached rollout of N steps, and the network to compute its velocities again; B rows."""

    denoiser: Denoiser
    cond: Any
    times: Tensor
    """(N + 1,) float64, from noise to data."""
    tau: Tensor
    """(N + 1,) flow times, falling."""
    sizes: Tensor
    """(N + 1,): alpha + sigma."""
    x: Sequence[Tensor]
    """N + 1 states, each (B, ...)."""
    v: Sequence[Tensor]
    """N velocities, without graph."""
    recompute: bool

    @property
    def steps(self) -> Tensor:
        """dtau of each step, (N,), negative."""
        return self.tau[1:] - self.tau[:-1]

    def y(self, i: int) -> Tensor:
        """The state before step i as a point of the flow, (B, ...)."""
        return self.x[i] / self.sizes[i]

    def velocity(self, i: int, y: Tensor | None = None) -> Tensor:
        """v at step i with gradient, (B, ...): of the parameters alone, or of `y` too, whose value is `self.y(i)`."""
        x = self.x[i] if y is None else straight(self.sizes[i] * y, self.x[i])
        out = call_with_graph(self.denoiser, x, self.times[i], self.cond, recompute=self.recompute)
        x0, eps = split(out, x, *self.denoiser.schedule(self.times[i]), self.denoiser.kind)
        return eps - x0

    def end(self, y: Tensor) -> Tensor:
        """The sample x_0 itself, with the gradient of the path's end y, (B, ...)."""
        return straight(self.sizes[-1] * y, self.x[-1])


class PathObjective(RewardObjective):
    """Base of the objectives that rebuild a path."""

    def path(self, policy: Policy, prompts: Sequence[str], rng: Rng) -> Path:
        """The policy's own rollout, without gradient, ready to be rebuilt."""
        role, text = policy.role("train"), self.model.text
        with torch.no_grad():
            found = rollout(self.sampling, self.model, role, prompts, rng, keep="all")
            alphas, sigmas = role.schedule(found.times)
            v = [
                (x - alpha * x0) / sigma - x0
                for x, x0, alpha, sigma in zip(found.states, found.x0_hats, alphas, sigmas, strict=False)
            ]
        denoiser = self.sampling.guided(role, self.sampling.unprompted(text), self.config.cfg_grad)
        tau, sizes = flow_time(alphas, sigmas), alphas + sigmas
        recompute = self.sampling.checkpoint_steps
        return Path(denoiser, text.encode(prompts), found.times, tau, sizes, found.states, v, recompute)


def closeness(gaps: Sequence[Tensor], floor: float) -> Tensor:
    """(B,): 1 over the sum of the gaps' mean sizes, each at least `floor`; gaps (B, ...) of leaps to the path."""
    sizes = [gap.detach().abs().flatten(1).mean(1).clamp(min=floor) for gap in gaps]
    return 1 / torch.stack(sizes).sum(0)


def weighted(weight: Tensor, losses: Tensor) -> Tensor:
    """(B,) times (B,), the weight as a constant."""
    return broadcast(weight.detach(), losses) * losses


def drawn(count: int, choices: Sequence[int], generator: torch.Generator) -> list[int]:
    """`count` of the steps (at most all), without replacement, step i with weight (i + 1)^2; in their order."""
    if not choices or count < 1:
        return []
    weights = (torch.tensor(list(choices), dtype=torch.float64) + 1).square()
    chosen = torch.multinomial(weights, min(count, len(choices)), generator=generator)
    return sorted(choices[i] for i in chosen.tolist())


class ShareConfig(PathConfig):
    """Which of the steps may carry gradient."""

    last_share: float = Field(default=1.0, gt=0, le=1)
    """Only this last share of the steps is trained; 1: any step may be."""

    def first(self, num_steps: int) -> int:
        """The earliest step that may be trained, counted from 0."""
        return min(num_steps - 1, num_steps - round(self.last_share * num_steps))
