"""On-policy preference pairs of single sampling steps: branching rollouts, judged step by step.

Along a stochastic DDIM rollout of the policy, from step `first_step` on (Liang et al., SPO, arXiv 2406.04314, section
3):

    x_s^j = mean(x_t) + std z_j,  j = 1..k        candidates from the same x_t
    score_j = judge(decode(x0_hat(x_s^j)), prompt, s)        the last step's x_s is the image itself
    winner, loser = best, worst;  kept where p_best - p_worst > gap,  (p_best, p_worst) = softmax(scores/temperature)
    x_t <- a candidate drawn uniformly: going on from the best or the worst would leave the policy's own distribution

TailorPO (Ren et al., arXiv 2502.01667) judges by any reward on x0_hat, has k = 2, goes on from the winner, and may move
it along the reward's gradient: `continue_from`, `guide`. Its pairs are kept by scores and not by logits: `gap_in: std`
keeps those apart by more than gap standard deviations of the scores of that step in the rollout (the papers name none).

Steps without noise have no density and are left out. A rollout's pairs are shuffled and served `batch_size` an update;
then the next rollout is drawn with the parameters of that moment. Dropped pairs stay in as rows of weight 0, so that an
update's rows do not depend on the judge.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import Field

from align.data._branch import Judge, Rows, branch, branched, judged
from align.data._readable import scoring
from align.data._workplace import Workplace
from align.data.prompts import Prompts, PromptsConfig, problems
from align.models._base import device_of
from align.processes import gather_object
from align.registry import ComponentConfig
from samplers import generator


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
    """Least difference of a pair that is trained on (SPO: 0.3 for SD 1.5, 0.4 for SDXL)."""
    gap_in: Literal["probability", "std"] = "probability"
    """What gap is of: p_best - p_worst, or the scores in units of their standard deviation at that step."""
    continue_from: Literal["random", "winner"] = "random"
    """Which candidate the rollout goes on from: one drawn uniformly (SPO), or the best (TailorPO)."""
    guide: float = Field(default=0.0, ge=0)
    """Move the winner this many standard deviations of the step's noise along the reward's gradient (TailorPO-G), where
    that raises its score; rewards with a gradient only."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the scores in p: a step-aware model's are logits; another reward's need a scale."""
    spm: str | None = None
    """The judge: folder of a step-aware preference model (recipes/spm). Default: the recipe's rewards on x0_hat, which
    is TailorPO's judge."""
    rollout_size: int = Field(default=16, ge=1)
    """Prompts rolled out at once on one process."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield from problems(self.prompts, ".prompts", self.count, scoring(recipe) if self.spm is None else ())
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
        if (combine := recipe.get("combine")) is not None:
            yield from combine.unmeasured(recipe.get("rewards", ()))
        if self.guide and self.spm is not None:
            yield ".guide", "follows the gradient of rewards, and the judge is data.spm. Set one of the two."

    @property
    def needs_gradient(self) -> bool:
        """Whether the rewards must have one."""
        return self.guide > 0


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
        self.step = self.number = self.position = self.drawing = 0
        self.pending: Rows | None = None
        self._widest = 0.0  # of the gaps that the judge has seen
        self._around: Workplace | None = None
        self._roll: Callable[[Any], Rows] | None = None

    def prepare(self, around: Workplace) -> None:
        """Builds the judge."""
        self._around = around
        branched(self.config, around)
        judge = self._judge(around)
        self._roll = lambda batch: self._gathered(batch, judge)

    def rehearse(self, around: Workplace) -> None:
        """In place of `prepare`, for a plan: rows without data, on the model's own device."""
        model, sampling, config = around.model, around.sampling, self.config
        steps, last = branched(config, around), sampling.num_steps - 1
        rows = config.num_prompts * len(steps)
        n = min(self.batch_size, rows)
        own = config.num_candidates + (2 if config.guide else 0)  # for each of them what it predicts, but at the end
        calls = 1 + sum(own if i in steps else 1 for i in range(last))
        each = sampling.num_rows // sampling.num_calls
        self.drawing = config.num_prompts * calls * each // -(-rows // self.batch_size)
        x = torch.empty(n, *model.latent_shape(), device=device_of(model.network))
        t = torch.full((n,), 0.5, dtype=torch.float64)
        self._roll = lambda batch: Rows(
            x, x, x, t, t / 2, torch.ones(n), torch.ones(n), torch.arange(n) % len(batch), torch.ones(n, 2)
        )

    def all_prompts(self) -> list[str]:
        """What is trained on."""
        return list(self.source.prompts)

    @property
    def why_empty(self) -> str:
        """Why every row was dropped, in words."""
        by = {"probability": "p_best - p_worst", "std": "standard deviations of the scores"}[self.config.gap_in]
        lower = f"lower data.temperature={self.config.temperature:g}, which is in units of the judge's score, "
        return (
            f"No two candidates of a step differ by more than data.gap={self.config.gap:g} ({by}; the largest was "
            f"{self._widest:.3g}). Lower data.gap, {lower if self.config.gap_in == 'probability' else ''}or take "
            "another judge."
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
        pending = state["pending"]
        self.pending = None if pending is None else Rows(**{"scores": torch.zeros(len(pending["t"]), 2), **pending})

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
        rows = Rows(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
        return judged(self.config, rows)
