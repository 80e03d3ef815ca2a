"""On-policy preference pairs of single sampling steps: branching rollouts, judged step by step.

Along a stochastic DDIM rollout of the policy, from step `first_step` on (Liang et al., SPO, arXiv 2406.04314, section
3):

    x_s^j = mean(x_t) + std z_j,  j = 1..k        candidates from the same x_t
    score_j = judge(decode(x0_hat(x_s^j)), prompt, s)        the last step's x_s is the image itself
    winner, loser = best, worst;  kept where p_best - p_worst > gap,  (p_best, p_worst) = softmax(scores/temperature)
    x_t <- a candidate drawn uniformly: going on from the best or the worst would leave the policy's own distribution

Steps without noise have no density and are left out. A rollout's pairs are shuffled and served `batch_size` an update;
then the next rollout is drawn with the parameters of that moment. Dropped pairs stay in as rows of weight 0, so that an
update's rows do not depend on the judge.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from accelerate.utils import gather_object
from pydantic import Field
from torch import Tensor

from align.data._workplace import Workplace
from align.data.prompts import Prompts, PromptsConfig, problems
from align.errors import UserError
from align.registry import ComponentConfig
from samplers import Rng, generator, noisy, split

Judge = Callable[[Tensor, tuple[str, ...], Tensor], Tensor]
"""(images (n, 3, H, W) in [0, 1], n prompts, t ()) -> scores (n,), higher is better."""


class RolloutsConfig(ComponentConfig):
    """Prompts, and how steps are branched and judged."""

    name: Literal["rollouts"] = "rollouts"
    prompts: list[str] | str
    """As in data.prompts of other recipes."""
    count: int | None = Field(default=None, ge=1)
    """Use only the first `count` of them."""
    num_prompts: int = Field(default=10, ge=1)
    """Prompts of one rollout."""
    num_candidates: int = Field(default=4, ge=2)
    """k (SPO: 4 for SD 1.5, 2 for SDXL)."""
    first_step: int = Field(default=4, ge=0)
    """Number of the first step that is branched; before it x0_hat shows nothing to judge."""
    gap: float = Field(default=0.3, ge=0, lt=1)
    """Least p_best - p_worst of a pair that is trained on (SPO: 0.3 for SD 1.5, 0.4 for SDXL)."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the scores in p: a step-aware model's are logits; another reward's need a scale."""
    spm: str | None = None
    """The judge: folder of a step-aware preference model (recipes/spm). Default: the recipe's rewards on x0_hat, which
    is TailorPO's judge (Ye et al., arXiv 2502.00473)."""
    rollout_size: int = Field(default=16, ge=1)
    """Prompts rolled out at once on one process."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield from problems(self.prompts, ".prompts")
        sampling = recipe.get("sampling")
        if sampling is not None and not sampling.stochastic:
            yield (
                "sampling.eta",
                "must be above 0, with step_rule=ddim: a step without noise has no density. Set it to 1.",
            )
        yield from sampling.alone() if sampling is not None else ()
        if sampling is not None and self.first_step >= sampling.num_steps:
            yield ".first_step", f"{self.first_step} is none of the {sampling.num_steps} steps. Lower it."
        if self.spm is None and not recipe.get("rewards"):
            yield ".spm", "is not set and the recipe has no rewards: there is no judge. Set one of the two."


class Rows(NamedTuple):
    """Transitions x_t -> x_s, one a row; tensors on the CPU."""

    x_t: Tensor
    """(n, C, h, w)"""
    x_w: Tensor
    """(n, C, h, w): the winning x_s."""
    x_l: Tensor
    t: Tensor
    """(n,) float64"""
    s: Tensor
    kept: Tensor
    """(n,) float32, 0 or 1: whether the judge saw a difference."""
    gap: Tensor
    """(n,) float32: p_best - p_worst."""
    prompt: Tensor
    """(n,) int64: number of the prompt's sample."""

    def at(self, rows: Any) -> "Rows":
        return Rows(*(tensor[rows] for tensor in self))


@dataclass(frozen=True)
class TransitionBatch:
    """Rows of one update."""

    rows: Rows
    prompts: tuple[str, ...]
    indices: tuple[int, ...]
    """Numbers of the prompts' samples; a sample has several rows."""
    step: int

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: slice) -> "TransitionBatch":
        return replace(self, rows=self.rows.at(rows), prompts=self.prompts[rows], indices=self.indices[rows])


class Rollouts:
    """Batches of transitions; `prepare` must have been called before the first."""

    Config = RolloutsConfig

    def __init__(self, config: RolloutsConfig, *, batch_size: int, seed: int):
        self.config, self.batch_size, self.seed = config, batch_size, seed
        self.source = Prompts(
            PromptsConfig(prompts=config.prompts, count=config.count), batch_size=config.num_prompts, seed=seed
        )
        self.step = self.number = self.position = 0
        self.pending: Rows | None = None
        self._widest = 0.0  # of the gaps that the judge has seen
        self._around: Workplace | None = None
        self._roll: Callable[[Any], Rows] | None = None

    def prepare(self, around: Workplace) -> None:
        """Builds the judge."""
        self._around = around
        _branched(self.config, around)
        judge = self._judge(around)
        self._roll = lambda batch: self._gathered(batch, judge)

    def rehearse(self, around: Workplace) -> None:
        """In place of `prepare`, for a plan: rows without data, on the model's own device."""
        model = around.model
        n = self.batch_size
        x = torch.empty(n, *model.latent_shape(), device=next(model.network.parameters()).device)
        t = torch.full((n,), 0.5, dtype=torch.float64)
        self._roll = lambda batch: Rows(x, x, x, t, t / 2, torch.ones(n), torch.ones(n), torch.arange(n) % len(batch))

    def all_prompts(self) -> list[str]:
        """What is trained on."""
        return list(self.source.prompts)

    @property
    def why_empty(self) -> str:
        """Why every row was dropped, in words."""
        return (
            f"No two candidates of a step differ by more than data.gap={self.config.gap:g} (p_best - p_worst; the "
            f"largest was {self._widest:.3g}). Lower data.gap, lower data.temperature={self.config.temperature:g}, "
            "which is in units of the judge's score, or take another judge."
        )

    def __iter__(self) -> Iterator[TransitionBatch]:
        assert self._roll is not None, "prepare was not called"
        while True:
            self.source.step = self.number
            drawn = next(iter(self.source))
            if self.pending is None:
                rows = self._roll(drawn)
                self._widest = max(self._widest, float(rows.gap.max()))
                order = torch.randperm(len(rows.t), generator=generator(self.seed, "transitions", self.number))
                self.pending = rows.at(order.to(rows.t.device))
            while self.position < len(self.pending.t):
                rows = self.pending.at(slice(self.position, self.position + self.batch_size))
                places = (rows.prompt - drawn.indices[0]).tolist()
                self.position += self.batch_size
                batch = TransitionBatch(
                    rows, tuple(drawn.prompts[i] for i in places), tuple(drawn.indices[i] for i in places), self.step
                )
                self.step += 1
                if self.position >= len(self.pending.t):
                    self.pending, self.position, self.number = None, 0, self.number + 1
                    yield batch
                    break
                yield batch

    def state_dict(self) -> dict[str, Any]:
        """With the transitions that are still to be served: they cannot be drawn again once the policy has moved."""
        pending = None if self.pending is None else dict(zip(Rows._fields, self.pending, strict=True))
        return {"step": self.step, "number": self.number, "position": self.position, "pending": pending}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.number, self.position = state["step"], state["number"], state["position"]
        self.pending = None if state["pending"] is None else Rows(**state["pending"])

    def _judge(self, around: Workplace) -> Judge:
        if self.config.spm is not None:
            from align.models._step_aware import StepAwareClip

            model = StepAwareClip.load(self.config.spm).to(around.accelerator.device).requires_grad_(False)
            return lambda images, prompts, t: model(images, prompts, t.expand(len(images)))
        rewards = around.rewards
        return lambda images, prompts, t: rewards.combine(rewards(images, prompts))

    def _gathered(self, batch: Any, judge: Judge) -> Rows:
        """The rollout of all processes, the same on each, in the order of the prompts."""
        assert self._around is not None
        accelerator, size = self._around.accelerator, self.config.rollout_size
        rank, count = accelerator.process_index, accelerator.num_processes
        start, stop = rank * len(batch) // count, (rank + 1) * len(batch) // count
        parts = [
            branch(self.config, self._around, judge, batch[i : min(i + size, stop)]) for i in range(start, stop, size)
        ]
        if count > 1:
            parts = [Rows(*part) for part in gather_object([tuple(part) for part in parts])]
        return Rows(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _branched(config: RolloutsConfig, around: Workplace) -> list[int]:
    """The steps that are branched: those from `first_step` on that have noise."""
    sampling, schedule = around.sampling, around.policy.role("train").schedule
    alphas, sigmas = schedule(sampling.grid(around.model).times)
    zero, rule = torch.zeros(1), noisy(sampling.law())
    steps = [
        i
        for i in range(config.first_step, len(alphas) - 1)
        if not rule(zero, zero, *(x[j] for j in (i, i + 1) for x in (alphas, sigmas))).deterministic
    ]
    if not steps:
        raise UserError(
            f"data.first_step={config.first_step}: of the {len(alphas) - 1} steps none from there on has noise (a grid "
            "that ends at the image takes its last step without), so none has candidates. Lower data.first_step, or "
            "raise sampling.num_steps."
        )
    return steps


@torch.no_grad()
def branch(config: RolloutsConfig, around: Workplace, judge: Judge, batch: Any) -> Rows:
    """One branching rollout of a batch of prompts; see the top of this file."""
    model, sampling, b, k = around.model, around.sampling, len(batch), config.num_candidates
    rng = Rng(around.seed, batch.indices)
    denoiser = sampling.guided(around.policy.role("train"), model.text.encode([""]))
    cond, grid = model.text.encode(batch.prompts), sampling.grid(model)
    repeated, conds = tuple(prompt for prompt in batch.prompts for _ in range(k)), cond.repeat(k)
    alphas, sigmas = denoiser.schedule(grid.times)
    device = next(model.network.parameters()).device
    x = rng.normal("x_T", torch.empty(b, *model.latent_shape(sampling.image_size), device=device)) * grid.init_scale
    rule = noisy(sampling.law())
    out, last, found = denoiser(x, grid.times[0], cond), len(grid.times) - 2, []
    for i, (t, s) in enumerate(zip(grid.times[:-1], grid.times[1:], strict=True)):
        x0_hat, eps = split(out, x, alphas[i], sigmas[i], denoiser.kind)
        step = rule(x0_hat, eps, alphas[i], sigmas[i], alphas[i + 1], sigmas[i + 1])
        if i < config.first_step or step.deterministic:
            x = step.sample(None if step.deterministic else rng.normal(f"step/{i}", x))
            out = denoiser(x, s, cond) if i < last else out
            continue
        noises = torch.stack([rng.normal(f"candidate/{i}/{j}", x) for j in range(k)], 1)
        candidates = (step.mean[:, None] + step.std * noises).flatten(0, 1)  # a sample's k side by side
        outs, images = None, candidates
        if i < last:
            outs = denoiser(candidates, s, conds)
            images = split(outs, candidates, alphas[i + 1], sigmas[i + 1], denoiser.kind)[0]
        scores = judge(model.codec.decode(images), repeated, s if i < last else torch.zeros_like(s)).view(b, k)
        best, worst = scores.argmax(1), scores.argmin(1)
        both = torch.stack([scores.amax(1), scores.amin(1)], 1).double() / config.temperature
        p = both.softmax(1)
        rows, grouped = torch.arange(b, device=device), candidates.unflatten(0, (b, k))
        gap = p[:, 0] - p[:, 1]
        times = [time.expand(b) for time in (t, s)]
        kept, number = (gap > config.gap).float(), torch.tensor(batch.indices)
        tensors = (x, grouped[rows, best], grouped[rows, worst], *times, kept, gap.float(), number)
        found.append([tensor.cpu() for tensor in tensors])
        chosen = torch.tensor(
            [int(torch.randint(k, (), generator=generator(around.seed, f"continue/{i}", j))) for j in batch.indices]
        ).to(device)
        x = grouped[rows, chosen]
        out = out if outs is None else outs.unflatten(0, (b, k))[rows, chosen]
    return Rows(*(torch.stack(column, 1).flatten(0, 1) for column in zip(*found, strict=True)))
