"""What the user watches: a bar with the reward, the seconds an update takes and the time left."""

import sys
import time
from collections import deque
from typing import Literal

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from align.hooks._base import Hook, State, Surroundings
from align.registry import ComponentConfig

PLAIN_EVERY = 10.0  # seconds between the lines of an output that is no terminal
RECENT = 32  # updates whose mean tells the speed: some draw for several, and panels stand between


class ProgressConfig(ComponentConfig):
    """Nothing to set."""

    name: Literal["progress"] = "progress"


class ProgressBar(Hook):
    """A bar on a terminal, a line now and then where the output goes to a file."""

    Config = ProgressConfig

    def __init__(self, config: ProgressConfig, around: Surroundings):
        self.main = around.accelerator.is_main_process
        self.bar: Progress | None = None
        self.spoken = 0.0
        self.ended: deque[float] = deque(maxlen=RECENT + 1)

    def start(self, state: State) -> None:
        self.ended.append(time.monotonic())
        if self.main and sys.stderr.isatty():
            columns = [TextColumn("{task.completed}/{task.total}"), BarColumn(), TextColumn("{task.description}")]
            self.bar = Progress(*columns, TimeRemainingColumn(), auto_refresh=False)
            self.bar.start()
            self.task = self.bar.add_task("", total=state.num_updates, completed=state.step)

    def after_update(self, state: State) -> None:
        self.ended.append(time.monotonic())
        each = (self.ended[-1] - self.ended[0]) / (len(self.ended) - 1)
        text = _text(state, each)
        if self.bar is not None:
            self.bar.update(self.task, completed=state.step, description=text, refresh=True)
        elif self.main and (time.monotonic() - self.spoken > PLAIN_EVERY or state.step == state.num_updates):
            self.spoken = time.monotonic()
            left = (state.num_updates - state.step) * each
            print(f"{state.step}/{state.num_updates}  {text}  {left:.0f} s left", flush=True)

    def finish(self, state: State) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def _text(state: State, each: float) -> str:
    name = "reward/total" if "reward/total" in state.metrics else "loss"
    return f"{name.removesuffix('/total')} {state.metrics[name]:.4f}  {each:.2f} s an update"
