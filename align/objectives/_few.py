"""What the distillers share: a student of K steps without guidance, one of whose steps carries the gradient.

    x_0 <- ... <- x_{t_j} <- ... <- x_T        the student's own steps, deterministic, without gradient
    x0_hat = student(x_{t_j}, t_j)             one step j, drawn for each image, again with gradient
    x_tau  = alpha x0_hat + sigma eps          where teacher (`reference`, guided) and `fake` are asked

All are LoRA roles on one network: `train` is the student, `fake` learns to denoise what the student makes, `reference`
is the base. A round moves fake, then the student. Guidance of the teacher is learnt into the student's weights.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from align.objectives._base import Loss, Move, Parts
from align.objectives._matching import drawn_times
from align.policy.cast import Trained
from align.policy.roles import Policy
from align.registry import ComponentConfig
from align.sampling import rollout
from samplers import Rng, add_noise, call_with_graph, cfg, generator, split

MARGIN = 0.01
"""How far below a step's own time the times end at which it is compared."""


class StudentConfig(ComponentConfig):
    """The teacher's guidance, and how the student may be drawn."""

    few_step: ClassVar[bool] = True
    rules: ClassVar[tuple[str, ...]] = ("ddim", "euler")
    """Step rules that its student may be drawn by."""
    guidance: float = Field(default=4.5, ge=0)
    """w of the teacher, in out_u + w (out_c - out_u); 1 is none. The student is drawn without guidance."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        sampling = recipe.get("sampling")
        if sampling is None:
            return
        if sampling.how.plain != 1:
            yield (
                "sampling.guidance_scale",
                "is not 1, and the student is drawn without guidance: the teacher's, objective.guidance, is learnt "
                "into its weights. Set it to 1.",
            )
        for key in ("solver", "roles"):
            if getattr(sampling, key) is not None:
                yield f"sampling.{key}", "is set, and the student's steps are trained as they are drawn. Remove it."
        if sampling.step_rule not in self.rules or sampling.stochastic:
            yield (
                "sampling.step_rule",
                "must be one prediction a step, without a share of fresh noise: the student's steps are trained as "
                f"they are drawn. Use {', '.join(self.rules)}, at eta 0.",
            )


class FewStepConfig(StudentConfig):
    """How fake follows, and where it is compared."""

    fake_updates: int = Field(default=1, ge=1)
    """Moves of fake in a round, before the student's."""
    fake_rate: float = Field(default=5.0, gt=0)
    """Its learning rate, in units of optim.lr."""
    warmup: int = Field(default=0, ge=0)
    """Updates before the student moves. For one that is trained already (adapter.init): fake begins as the base, and
    until it knows what the student makes, its pull is none."""
    t_min: float = Field(default=0.02, gt=0, lt=1)
    """The least time at which teacher and fake are compared."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield from super().conflicts(recipe)
        train = recipe.get("train")
        if train is not None and self.warmup >= train.num_updates:
            yield ".warmup", f"is {self.warmup} of {train.num_updates} updates: the student never moves. Lower it."


class Rows(NamedTuple):
    """Images at the step of the student that is looked at; times (B,) float64 on the CPU."""

    x_t: Tensor
    """(B, ...): the state before the step."""
    t: Tensor
    s: Tensor
    """The time after it."""
    x0_hat: Tensor
    """(B, ...): what the student predicts there, without graph."""
    step: Tensor
    """(B,) int64: j, from 0."""
    keys: Sequence[int]
    """What each row's further draws depend on, beside the seed."""


class Student:
    """Base: what the roles predict at given states."""

    def __init__(self, config: Any, parts: Parts):
        self.config, self.model, self.sampling = config, parts.model, parts.sampling
        self.rewards, self.seed = parts.rewards, parts.seed

    def predicted(self, denoiser: Any, x: Tensor, t: Tensor, cond: Any) -> "Seen":
        """One call at x (B, ...), t (B,); in the backward pass it is made again, where there is one."""
        t_there = t.to(x.device)
        recompute = self.sampling.checkpoint_steps and torch.is_grad_enabled()
        out = call_with_graph(denoiser, x, t_there, cond) if recompute else denoiser(x, t_there, cond)
        alpha, sigma = self.model.schedule(t)
        x0, eps = split(out, x, alpha, sigma, self.model.kind)
        return Seen(out, x0, eps)

    def guided(self, policy: Policy, role: str, scale: float) -> Any:
        """A role under guidance."""
        denoiser = policy.role(role)
        return cfg(denoiser, self.model.text.encode([""]), scale, rescale=getattr(denoiser, "rescale", None))

    def grid_times(self) -> Tensor:
        """(K + 1,) float64: the student's times, from noise to data."""
        return self.sampling.grid(self.model).times


class FewStep(Student):
    """Base: rows of the student's own steps, and fake's move."""

    def __init__(self, config: Any, parts: Parts):
        super().__init__(config, parts)
        self.adapters: dict[str, Any] = {"fake": Trained(rate=config.fake_rate)}
        self._of_update: tuple[int, dict[Any, Rows]] = (-1, {})

    def moves(self, step: int) -> list[Move]:
        """fake as often as is said, then the student."""
        return [*self.fakes(), *self.own(step)]

    def own(self, step: int) -> list[Move]:
        """The student's move, once `warmup` is over."""
        return [Move("default", self.student)] if step >= self.config.warmup else []

    def fakes(self) -> list[Move]:
        return [Move("fake", partial(self.fake, number=i)) for i in range(self.config.fake_updates)]

    def student(self, policy: Policy, batch: Any, context: Any = None) -> Loss:
        """The student's loss."""
        raise NotImplementedError

    def fake(self, policy: Policy, batch: Any, context: Any = None, *, number: int = 0) -> Loss:
        """Fake's loss: it denoises what the student makes, as its network is trained, at times of its own."""
        rows, cond = self.rows(policy, batch), self.model.text.encode(batch.prompts)
        tau, eps = self.noise(rows, f"fake/{number}")
        x_tau = add_noise(self.model.schedule, rows.x0_hat, eps, tau)
        losses = self.fake_error(self.predicted(policy.role("fake"), x_tau, tau, cond), rows, tau, eps)
        return Loss(losses, torch.ones_like(losses), {})

    def fake_error(self, seen: "Seen", rows: Rows, tau: Tensor, eps: Tensor) -> Tensor:
        """(B,) of what fake predicts."""
        raise NotImplementedError

    def times(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """(B,), (B,): between which times each row is compared."""
        raise NotImplementedError

    def rows(self, policy: Policy, batch: Any) -> Rows:
        """The student's way, drawn once a round: it moves last."""
        if self._of_update[0] != batch.step:
            self._of_update = batch.step, {}
        kept = self._of_update[1]
        if batch.indices not in kept:
            kept[batch.indices] = self._drawn(policy, batch)
        return kept[batch.indices]

    @torch.no_grad()
    def _drawn(self, policy: Policy, batch: Any) -> Rows:
        rng, count = Rng(self.seed, batch.indices, batch.step), self.sampling.num_steps
        found = rollout(self.sampling, self.model, policy.role("train"), batch.prompts, rng, keep="all")
        draws = [torch.randint(count, (), generator=generator(self.seed, "few/step", i)) for i in batch.indices]
        step, places = torch.stack(draws), torch.arange(len(draws))
        x_t, x0_hat = (torch.stack(list(x), 1)[places, step] for x in (found.states[:-1], found.x0_hats))
        return Rows(x_t, found.times[step], found.times[step + 1], x0_hat, step, batch.indices)

    def noise(self, rows: Rows, stream: str) -> tuple[Tensor, Tensor]:
        """(tau (B,) float64, eps (B, ...)) of each row, by (seed, stream, its key) alone."""
        uniform = [torch.rand((), generator=generator(self.seed, f"few/time/{stream}", k)) for k in rows.keys]
        eps = Rng(self.seed, rows.keys).normal(f"few/noise/{stream}", rows.x_t)
        return drawn_times(*self.times(rows), torch.stack(uniform)), eps


class Seen(NamedTuple):
    """An output and what it says, (B, ...) each."""

    out: Tensor
    x0: Tensor
    eps: Tensor
