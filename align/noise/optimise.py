"""Optimises the noise of a batch of images with the trainer's own loop, and says how it goes.

noise (the best of n random ones) -> Trainer(objective, Noise, the same rows again and again) -> the best iterates
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.hooks._base import Hook, State
from align.noise.best_of import best_of
from align.noise.studio import Cost, Row, Studio
from align.objectives._base import Parts
from align.policy.noise import Noise, Repeated
from align.processes import gather_object
from align.registry import OBJECTIVES, build
from align.training.trainer import Trainer


@dataclass
class Optimised:
    """A batch's noise, with the best of each row, and what it took; seconds and cost include the choice of starts."""

    noise: Noise
    iterations: int
    seconds: float
    cost: Cost
    stopped: str | None
    interrupted: str | None


def optimise(
    studio: Studio, rows: Sequence[Row], *, say: Callable[[str], None], frames: bool = False, title: str = ""
) -> Optimised:
    """ReNO on `rows`, as the studio's recipe says. Ctrl-C ends it after the current iteration, and keeps the best."""
    recipe, accelerator = studio.recipe, studio.accelerator
    config: Any = recipe.objective
    started, before = time.perf_counter(), studio.cost()
    part = studio.mine(rows)
    x_T = studio.noise(rows)
    searched = 0
    if config.num_starts > 1 and rows[part]:
        found = best_of(studio, rows[part], count=config.num_starts)
        x_T[part], searched = found.x_T, found.cost.free
    noise = Noise(x_T)
    if frames:
        noise.keep_frames()
    objective = build(OBJECTIVES, recipe.objective, Parts(studio.model, recipe.sampling, studio.rewards, studio.seed))
    watch = Watch(config, noise, recipe.train.num_updates, started, accelerator, say, title)
    batches = Repeated(noise, [row.prompt for row in rows], [row.index for row in rows])
    with tempfile.TemporaryDirectory() as folder:
        settings = recipe.train.model_copy(update={"batch_size": len(rows)})
        trainer = _Unsaved(settings, recipe.optim, accelerator, Path(folder), recipe={}, say=say)
        state = trainer.fit(objective, studio.policy, noise, batches, [watch])
    seconds = time.perf_counter() - started
    noise.gather(accelerator)
    cost = studio.cost(before)
    cost.free, cost.graded = searched, state.step * len(rows[part])
    return Optimised(noise, state.step, seconds, cost, state.stop, state.interrupted)


class _Unsaved(Trainer):
    """Writes no checkpoints: a batch takes seconds, and a run is taken up again from the images that are finished."""

    def _save(self, *_: Any) -> None:
        pass


class Watch(Hook):
    """The live line, and the two ends that come before the last iteration: the budget, and gain that has dried up."""

    def __init__(
        self,
        config: Any,
        noise: Noise,
        num_iterations: int,
        started: float,
        accelerator: Any,
        say: Callable[[str], None],
        title: str = "",
    ):
        self.config, self.noise, self.num_iterations, self.accelerator = config, noise, num_iterations, accelerator
        self.started, self.say, self.title = started, say, title
        self.live = sys.stderr.isatty()
        self.shown = -10.0
        self.history: list[tuple[float, float]] = []
        """(seconds, mean best reward) after each iteration."""

    def start(self, state: State) -> None:
        self.loop_started = time.perf_counter()

    def after_update(self, state: State) -> None:
        now = time.perf_counter()
        best = self.noise.metrics()["best"]
        self.history.append((now - self.started, best))
        each = (now - self.loop_started) / state.step
        left = each * (self.num_iterations - state.step)
        reason = None
        if self.config.budget is not None:
            left = min(left, self.config.budget - (now - self.started))
            if now - self.started + each > self.config.budget:
                reason = f"the budget of {self.config.budget:g} s is spent"
        if self.config.min_gain and len(self.history) > self.config.patience:
            then, at = self.history[-1 - self.config.patience]
            gain = (best - at) / max(self.history[-1][0] - then, 1e-9)
            if gain < self.config.min_gain:
                reason = f"the gain of {gain:.3g} a second is below {self.config.min_gain:g}"
        state.stop = state.stop or self._agreed(reason)
        last = bool(state.stop) or state.step == self.num_iterations
        self._show(state, best, 0.0 if last else max(left, 0.0), last)

    def _agreed(self, reason: str | None) -> str | None:
        """All processes end together: as soon as one of them has a reason to."""
        if self.accelerator.num_processes == 1:
            return reason
        return next((said for said in gather_object([reason]) if said), None)

    def _show(self, state: State, best: float, left: float, last: bool) -> None:
        if not self.accelerator.is_main_process:
            return
        gain = best - self.noise.metrics()["first"]
        line = (
            f"{self.title}reward {best:.3f}, gain {gain:+z.3f}, iteration {state.step}/{self.num_iterations}, "
            f"{left:.0f} s left"
        )
        if self.live:
            print(f"\r{line:<100}", end="\n" if last else "", file=sys.stderr, flush=True)
        elif last or self.history[-1][0] - self.shown >= 5:
            self.shown = self.history[-1][0]
            self.say(line)
