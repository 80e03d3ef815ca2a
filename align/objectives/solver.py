"""Learned solvers: the times and step coefficients of a few steps, so that they end where a long path ends.

    t = t_0 + (t_N - t_0) cumsum(softmax(r)),   steps of samplers/learned.py by M,  N + N (N - 1)/2 numbers in all
    distance   sum_i MSE(x_i, x~(t_i)) + 1000 Huber_0.001(x_N, x~_L)      x~: the same model in L DDIM steps, in lines
    reward     -r(decode(x_N)) + distance_weight MSE(x_N, x~_L)

Wang et al., "Differentiable Solver Search for Fast Diffusion Sampling", arXiv 2505.21114, algorithm 2; there the time
of the target is rounded to an index and has no gradient, here it is interpolated. `search: evolution` needs no gradient
(as AutoDiffusion, Li et al., arXiv 2309.10438). The network stays as it is; guidance is the one that will be used.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from align.errors import UserError
from align.models._base import device_of
from align.objectives._base import Loss, Parts
from align.objectives._evolution import Evolution
from align.policy.roles import Policy
from align.policy.trainable import Module
from align.registry import ComponentConfig
from align.sampling import rollout
from align.sampling.solver import Solver
from rewards._latents import Undecoded
from samplers import GradPolicy, Grid, Learned, Rng, Trajectory, full, mixture, sample, times_of

WEIGHT, DELTA = 1000.0, 1e-3


class SolverConfig(ComponentConfig):
    """The search; num_steps and guidance are those of `sampling`."""

    name: Literal["solver"] = "solver"
    loss: Literal["distance", "reward"] = "distance"
    """distance: to a long path of the same model from the same noise; reward: of the images, by the rewards."""
    teacher_steps: int = Field(default=50, ge=2)
    """L, DDIM steps of the long path."""
    distance_weight: float = Field(default=0.0, ge=0)
    """loss=reward: how closely images are held to where the long path ends. 0: no long path is drawn."""
    search: Literal["gradient", "evolution"] = "gradient"
    """evolution: differential evolution on the losses alone, for rewards without gradient."""
    population: int = Field(default=12, ge=4)
    """search=evolution: candidates that stay; twice as many rollouts an update."""
    spread: float = Field(default=0.2, gt=0)
    """search=evolution: standard deviation of the first candidates' times (their logarithms) and coefficients."""

    few: ClassVar[tuple[str, ...]] = ("ddim",)

    @property
    def needs_gradient(self) -> bool:
        return self.loss == "reward" and self.search == "gradient"

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        sampling, optim = recipe.get("sampling"), recipe.get("optim")
        if sampling is not None:
            if sampling.step_rule not in self.few or sampling.stochastic or sampling.solver is not None:
                yield (
                    "sampling",
                    "must be plain ddim, no eta, no solver: the steps are what is learned. Remove them.",
                )
            if isinstance(sampling.how.scale, tuple):
                yield "sampling.guidance.scale", "is a list, one a call, and the long path has more. Use {t: w}."
            if self.teacher_steps <= sampling.num_steps:
                yield ".teacher_steps", f"is {self.teacher_steps}; set it well above num_steps={sampling.num_steps}."
        if self.loss == "reward" and not recipe.get("rewards"):
            yield "rewards", "are missing: loss=reward maximises one. Add it, or take loss=distance."
        if self.loss == "reward" and (combine := recipe.get("combine")) is not None:
            yield from combine.unmeasured(recipe.get("rewards", ()))
        if getattr(optim, "weight_decay", 0):
            yield "optim.weight_decay", "pulls the numbers to 0, and they are no weights. Set it to 0."


class Numbers(nn.Module):
    """What is trained: the logarithms of the gaps of time, and what stands below M's diagonal."""

    def __init__(self, grid: Grid):
        super().__init__()
        gaps = (grid.times[:-1] - grid.times[1:]).double()
        n = len(gaps)
        self.gaps = nn.Parameter((gaps / gaps.mean()).log())
        self.below = nn.Parameter(torch.zeros(n * (n - 1) // 2, dtype=torch.float64))

    def split(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """(d,) -> gaps (N,), below."""
        return numbers[: len(self.gaps)], numbers[len(self.gaps) :]


class SolverSearch:
    """The objective: prompts in; what it trains is its own."""

    Config = SolverConfig

    @property
    def selects(self) -> bool:
        """Whether it moves by selection, with a gradient of 0."""
        return self.evolution is not None

    def __init__(self, config: SolverConfig, parts: Parts):
        self.config, self.model, self.seed, self.rewards = config, parts.model, parts.seed, parts.rewards
        self.sampling = parts.sampling
        self.long = parts.sampling.model_copy(update={"num_steps": config.teacher_steps, "timesteps": None})
        grid = self.long.grid(parts.model)
        self.ends, self.init_scale = (float(grid.times[0]), float(grid.times[-1])), grid.init_scale
        self.numbers = Numbers(self.sampling.grid(parts.model))
        self.trainable = Module(self.numbers, list(self.numbers.parameters()), self.save)
        self.evolution: Evolution | None = None
        self._losses: list[Tensor] = []
        if config.search == "evolution":
            start = torch.cat([self.numbers.gaps.detach(), self.numbers.below.detach()])
            self.evolution = Evolution(start, config.population, torch.full_like(start, config.spread), parts.seed)
        count = sum(p.numel() for p in self.numbers.parameters())
        self.notes = [f"solver: {count} numbers, {self.sampling.num_steps} steps against {config.teacher_steps}"]

    def __call__(self, policy: Policy, batch: Any, context: Any = None) -> Loss:
        rng, role = Rng(self.seed, batch.indices, batch.step), policy.role("reference")
        long = None
        if self.config.loss == "distance" or self.config.distance_weight:
            with torch.no_grad():
                long = rollout(self.long, self.model, role, batch.prompts, rng, keep="states")
        own = self.numbers.gaps, self.numbers.below
        if self.evolution is None:
            losses, said = self._losses_of(role, batch, rng, long, *own)
            return Loss(losses, torch.ones_like(losses), said)
        with torch.no_grad():
            tried = [self.numbers.split(candidate) for candidate in self.evolution.candidates()]
            every = [self._losses_of(role, batch, rng, long, *numbers) for numbers in tried]
        self._losses.append(torch.stack([losses for losses, _ in every], 1).double().cpu())
        present = every[self.evolution.place(torch.cat(own))]  # the best of these images would depend on the cut
        losses = present[0] + 0 * torch.cat(own).sum().to(present[0])  # moved by selection, not by a gradient
        return Loss(losses, torch.ones_like(losses), present[1])

    @torch.no_grad()
    def after_update(self, gather: Callable[[Tensor], Tensor]) -> None:
        """The generation's selection, by the losses of the whole update."""
        if self.evolution is None:
            return
        none = torch.empty(0, len(self.evolution.candidates()), dtype=torch.float64)  # a process may have no rows
        losses, self._losses = gather(torch.cat([none, *self._losses])), []
        gaps, below = self.numbers.split(self.evolution.select(losses.mean(0)))
        self.numbers.gaps.copy_(gaps)
        self.numbers.below.copy_(below)

    def _losses_of(
        self, role: Any, batch: Any, rng: Rng, long: Trajectory | None, gaps: Tensor, below: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(B,) of these numbers, and metrics."""
        found = self._path(role, batch.prompts, rng, times_of(gaps, *self.ends), mixture(below))
        said: dict[str, Tensor] = {}
        if long is not None:
            end = (found.x0 - long.x0).float()
            said["distance"] = end.detach().square().flatten(1).mean(1).sqrt()
        if self.config.loss == "distance":
            assert long is not None
            huber = functional.huber_loss(found.x0.float(), long.x0.float(), reduction="none", delta=DELTA)
            losses = WEIGHT * huber.flatten(1).mean(1)
            for t, x in zip(found.times[1:], found.states[1:], strict=True):
                losses = losses + (x - between(long, t)).float().square().flatten(1).mean(1)
        else:
            scored = self.rewards.score(Undecoded(found.x0, self.model.codec), batch.prompts)
            losses = -scored.total
            said |= {f"reward/{label}": score for label, score in scored.terms.items()}
            if long is not None:
                losses = losses + self.config.distance_weight * end.square().flatten(1).mean(1)
        return losses, said

    def _path(self, role: Any, prompts: Sequence[str], rng: Rng, times: Tensor, matrix: Tensor) -> Trajectory:
        device = device_of(self.model.network)
        like = torch.empty(len(prompts), *self.model.latent_shape(self.sampling.image_size), device=device)
        cond = self.model.text.encode(prompts)
        guided = self.sampling.guided(role, self.sampling.unprompted(self.model.text))
        whole = GradPolicy(full().keep, checkpoint=self.sampling.checkpoint_steps)
        x_T = rng.normal("x_T", like) * self.init_scale
        grid = Grid(times, self.init_scale)
        return sample(guided, x_T, grid, cond, step=Learned.of(matrix), grad=whole, keep="states", rng=rng)

    def save(self, folder: Path) -> None:
        """Writes solver.json."""
        times = times_of(self.numbers.gaps.detach(), *self.ends).tolist()
        if not all(a > b for a, b in pairwise(times)):
            raise UserError("solver: two of its times have met. Lower optim.lr, or take fewer steps.")
        source, how = str(getattr(self.model, "source", "")), self.sampling.how.described()
        below = tuple(self.numbers.below.detach().tolist())
        solver = Solver(tuple(times), below, self.init_scale, self.model.kind.name.lower(), source, how)
        solver.write(folder)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.evolution is None else self.evolution.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.evolution is not None:
            self.evolution.load_state_dict(state)


def between(path: Trajectory, t: Tensor) -> Tensor:
    """The state of `path` (all states kept) at t, (B, ...): on the line between its neighbours, with t's gradient."""
    times = path.times.to(t)
    i = int((times >= t.detach()).sum().clamp(1, len(times) - 1)) - 1
    share = (times[i] - t) / (times[i] - times[i + 1])
    return torch.lerp(path.states[i], path.states[i + 1], share.to(path.states[i]))
