"""The loop. It knows batches, an objective, something trainable and hooks, and none of them by name."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from pydantic import Field, model_validator

from align.data._base import BatchSource, micro_batches
from align.errors import UserError
from align.hooks._base import Hook, State, running
from align.interrupt import Interrupt
from align.objectives._base import Move, Objective
from align.policy.cast import Cast
from align.policy.roles import Policy
from align.policy.trainable import Trainable
from align.registry import ComponentConfig
from align.training import checkpoint
from align.training.checkpoint import Checkpoints, named, set_aside
from align.training.ema import EMA
from align.training.failures import Failures
from align.training.growth import Growth
from align.training.memory import Pieces
from align.training.movers import Mover, alone, handed_over, movers, moves
from align.training.optim import OptimConfig
from align.training.update import Update, update
from align.versions import versions
from rewards._numerals import counted

EXPORTS = "adapters"


class TrainConfig(ComponentConfig):
    """How long, how large, how precise. batch_size says what is computed; micro_batch_size and the number of processes
    only say how it is cut, and change no result, but with adapter.dropout, whose masks are drawn for each cut."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of all that is drawn: the adapter's start, the order of the data, noise."""
    num_updates: int = Field(default=100, ge=1)
    """Length of the run."""
    batch_size: int = Field(default=16, ge=1)
    """Rows of one update, over all processes and micro-batches."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Rows of one forward pass on one process; default: all that the process has. Lower it when memory runs out."""
    auto_micro_batch: bool = False
    """When memory runs out in an update, try it again with half the micro-batch, and go on with that. The result is the
    same; not with adapter.dropout, whose masks depend on the cut."""
    num_processes: int | None = Field(default=None, ge=1)
    """Refuse to start with another number of processes (a launcher on CPU may start one where two were asked for)."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Autocast of the network's calls; the adapter's weights and the optimiser are float32 all the same."""
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """null: do not clip."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay of a moving average of the trained parameters, which is then what is judged, kept and exported. At update n
    it is min(ema, (1 + n)/(10 + n)), so that the average of a short run is not what it began with."""
    checkpoint_every: int = Field(default=50, ge=1)
    """Updates between checkpoints; one is also written at the end and at an interruption."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """The last so many; older ones are removed."""
    export_every: int | None = Field(default=None, ge=1)
    """Updates between adapters that are written to adapters/step-000050 and stay, to choose among. Default: none."""
    max_failures: int = Field(default=5, ge=1)
    """Updates in a row without a finite gradient before the run ends with an error."""
    compile: bool | Literal["prefix"] = False
    """torch.compile the network: minutes before the first update, faster ones after it. prefix: for the steps before
    the gradient's window alone; what carries gradient, and pictures, run as they are."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        objective, sampling = recipe.get("objective"), recipe.get("sampling")
        if self.compile == "prefix" and objective is not None and not getattr(objective, "needs_gradient", False):
            yield ".compile", f"is prefix, and {objective.name} has no steps before a gradient. Set it to true."
        elif self.compile == "prefix" and sampling is not None and not sampling.num_free:
            yield ".compile", "is prefix, and every step carries gradient. Set it to true, or narrow sampling.window."
        if self.auto_micro_batch and getattr(recipe.get("adapter"), "dropout", 0):
            yield (
                ".auto_micro_batch",
                "would make the result depend on the memory that is free: adapter.dropout draws its masks for each "
                "micro-batch. Set train.micro_batch_size, or adapter.dropout=0.",
            )

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """The context of a network call."""
        dtype = {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}[self.mixed_precision]
        return torch.autocast(device.type, dtype) if dtype else nullcontext()

    def scaler(self, device: torch.device) -> torch.amp.GradScaler | None:
        """fp16 gradients underflow without one."""
        return torch.amp.GradScaler(device.type) if self.mixed_precision == "fp16" else None

    @model_validator(mode="after")
    def _whole(self) -> "TrainConfig":
        if self.micro_batch_size and self.micro_batch_size > self.batch_size:
            raise ValueError(
                f"micro_batch_size={self.micro_batch_size} exceeds batch_size={self.batch_size}, the rows of a whole "
                f"update. Set micro_batch_size <= {self.batch_size}"
            )
        return self


class Trainer:
    """Runs updates and keeps the run safe: checkpoints in `output`/checkpoints, finite checks, signals."""

    def __init__(
        self,
        config: TrainConfig,
        optim: OptimConfig,
        accelerator: Accelerator,
        output: Path,
        *,
        recipe: dict[str, Any],
        say: Callable[[str], None],
        contents: Mapping[str, str] | None = None,
    ):
        self.config = config
        self.optim = optim
        self.accelerator = accelerator
        self.recipe = recipe
        self.contents = dict(contents or {})
        self.say = say
        self.exports = output / EXPORTS
        auto = config.auto_micro_batch
        self.pieces = Pieces(config.micro_batch_size, auto=auto, accelerator=accelerator, say=say)
        self.checkpoints = Checkpoints(output / "checkpoints", keep=config.keep_checkpoints, say=say)

    def fit(
        self,
        objective: Objective,
        policy: Policy,
        trainable: Trainable,
        batches: BatchSource,
        hooks: Sequence[Hook] = (),
        *,
        cast: Cast | None = None,
        result: Trainable | None = None,
        resume: Path | None = None,
    ) -> State:
        """Trains until num_updates, a hook's stop or a signal; `cast` is what takes part beside `trainable`, `result`
        what is handed over in place of `trainable`, and `resume` a checkpoint to go on from."""
        cast, result = cast or Cast(), result or trainable
        self.movers = movers(self.config, self.optim, trainable, cast, self.accelerator)
        ema = EMA(result.parameters(), self.config.ema) if self.config.ema else None
        state = State(self.config.num_updates, average=ema.applied if ema else nullcontext)
        self.failures = Failures(self.config.max_failures)
        growth = Growth(self.config.num_updates, self.say)
        parts: dict[str, Any] = {"batches": batches, "ema": ema, "objective": objective, "failures": self.failures}
        for mover in self.movers:
            parts |= mover.parts()
        parts |= {f"adapter-{name}": follower for name, follower in cast.followers.items()}
        parts |= {f"hook-{i}": hook for i, hook in enumerate(hooks)}
        parts = {name: part for name, part in parts.items() if hasattr(part, "state_dict")}
        self.result = handed_over(result, parts) if result is not trainable else {}
        if resume is not None:
            self._restore(resume, parts, policy, state)
        with Interrupt(self.accelerator) as interrupt, running(hooks, state, self.say):
            stream = iter(batches)
            state.interrupted = interrupt.agreed()
            state.stop = state.stop or state.interrupted
            while state.step < self.config.num_updates and not state.stop:
                started = time.perf_counter()
                batch = next(stream)
                done = self._round(objective, policy, batch, state.step)
                if ema is not None and done.outcome == "applied":
                    ema.update()
                for follower in cast.followers.values():
                    follower.advance(state.step + 1, used_up=getattr(batch, "used_up", True))
                state.step += 1
                state.metrics = {**done.metrics, "outcome": done.outcome, "seconds": time.perf_counter() - started}
                selects = getattr(objective, "selects", False)
                self._watch(done, batches, state, objective, by_gradient=not (trainable.rowwise or selects))
                growth.watch(state.step)
                if done.outcome == "applied" and (watch := getattr(objective, "watch", None)) is not None:
                    watch(done.metrics)
                for hook in hooks:
                    hook.after_update(state)
                if self.config.export_every and state.step % self.config.export_every == 0:
                    self._export(result, state)
                state.interrupted = interrupt.agreed()
                state.stop = state.stop or state.interrupted
                last = state.stop or state.step == self.config.num_updates
                if last or state.step % self.config.checkpoint_every == 0:
                    self._save(parts, policy, state)
        return state

    def _round(self, objective: Objective, policy: Policy, batch: Any, step: int) -> Update:
        """All moves of one update; its outcome is the first that is not "applied", if there is one."""
        config, accelerator = self.config, self.accelerator
        rank, size = accelerator.process_index, accelerator.num_processes
        known = {mover.name: mover for mover in self.movers}
        metrics: dict[str, Any] = {}
        outcomes = []
        for number, move in enumerate(moves(objective, step)):
            mover = known[move.trainable]
            rate = mover.set_rate(step, config.num_updates)
            with alone(mover.trainable, [other.trainable for other in self.movers]):
                how: dict[str, Any] = {"max_grad_norm": mover.max_grad_norm, "scaler": mover.scaler}
                how |= {"seed": (config.seed, step, number) if number else (config.seed, step)}

                def attempt(pieces: int | None, move: Move = move, mover: Mover = mover, how: Any = how) -> Update:
                    rows = micro_batches(batch, pieces, rank=rank, num_processes=size)
                    what = move.objective, policy, mover.trainable, mover.optimiser, rows, accelerator
                    return update(*what, agree=self.pieces.agree, **how)

                done = self.pieces.fit(attempt, move.objective, len(batch), step)
            own = mover.trainable.metrics() | mover.over_eps(done.metrics.get("grad_norm", 0.0))
            metrics |= mover.named({**done.metrics, **own, "lr": rate})
            for key in ("loss", "grad_norm"):  # the run's own adapter's, unless the round leaves it out
                if key in done.metrics:
                    metrics.setdefault(key, done.metrics[key])
            outcomes.append(done.outcome)
        return Update(metrics, next((outcome for outcome in outcomes if outcome != "applied"), "applied"))

    def _watch(
        self, done: Update, batches: BatchSource, state: State, objective: Objective, *, by_gradient: bool
    ) -> None:
        scales = [mover.scaler.get_scale() for mover in self.movers if mover.scaler is not None]
        scale, why_empty = min(scales, default=None), getattr(batches, "why_empty", None)
        same = getattr(objective, "same_steps", False)
        self.failures.watch(done, state.step, scale=scale, why_empty=why_empty, same_steps=same)
        if state.step == self.config.num_updates and by_gradient:  # else rows have results of their own, or compete
            self.failures.finish(state.step, why_empty)

    def _save(self, parts: dict[str, Any], policy: Policy, state: State) -> None:
        calls = policy.calls.over_processes(self.accelerator)
        if self.accelerator.is_main_process:
            states = {name: held for name, part in parts.items() if (held := part.state_dict())}
            states["calls"] = calls.state_dict()
            meta = {"recipe": self.recipe, "versions": versions(), "threads": torch.get_num_threads()}
            meta |= {"contents": self.contents, "base": self.checkpoints.base, **self.result}
            self.checkpoints.save(state.step, states, meta)
        self.accelerator.wait_for_everyone()

    def _export(self, trainable: Trainable, state: State) -> None:
        with state.average():
            if self.accelerator.is_main_process:
                trainable.export(self.exports / named(state.step))
        self.accelerator.wait_for_everyone()

    def _restore(self, path: Path, parts: dict[str, Any], policy: Policy, state: State) -> None:
        try:
            states, meta = checkpoint.load(path)
        except checkpoint.Damaged as error:
            raise UserError(f"{path}: {error}. Give another checkpoint, or start over with --resume never.") from None
        if self.accelerator.is_main_process:  # what all had counted is counted once
            policy.calls.load_state_dict(states["calls"])
        for name in parts.keys() & states.keys():  # hooks without a state may come and go
            try:
                parts[name].load_state_dict(states[name])
            except (KeyError, ValueError, TypeError, AttributeError, IndexError, RuntimeError) as error:
                said = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise UserError(
                    f"{path}: its {name} does not fit this run ({said}). Give another checkpoint, or start over with "
                    "--resume never."
                ) from None
        state.step, state.base = meta["step"], path
        self.checkpoints.base = meta.get("base")
        if self.accelerator.is_main_process:
            self.checkpoints.go_back(path)
            set_aside(self.exports, state.step)
        if meta["threads"] != torch.get_num_threads():
            self.say(f"going on with {meta['threads']} threads, as {path} was written: another number rounds otherwise")
            torch.set_num_threads(meta["threads"])
        if state.step == state.num_updates:
            self.say(f"all {counted(state.num_updates, 'update')} are done, by {path}: only the report is made anew")
        else:
            self.say(f"going on from {path}, after update {state.step} of {state.num_updates}")
