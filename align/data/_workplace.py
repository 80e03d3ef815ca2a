"""What a source that has something to prepare before the first update is given to do it with."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rich.progress import track

T = TypeVar("T")
SPEAK_EVERY = 10.0  # seconds between the lines of an output that is no terminal


@dataclass(frozen=True)
class Workplace:
    """`source.prepare(workplace)` is called once on every process, when all is built and nothing is trained."""

    painter: Any
    """Images of a role for prompts (policy.painter.Painter); it holds the policy, the sampling block and the seed."""
    rewards: Any
    """The composite of the recipe's rewards, or None."""
    build_rewards: Callable[[Any], Any]
    """{label: reward config} -> rewards.Composite on the run's device."""
    say: Callable[[str], None]
    """Prints a line, on the main process."""
    wanted: Any = None
    """What the objective wants of rows that are drawn for it (align.data._wanted.Wanted), or None: it says nothing."""

    @property
    def policy(self) -> Any:
        """The model's roles (align.policy.roles.Policy)."""
        return self.painter.policy

    @property
    def model(self) -> Any:
        """The bundle (align.models)."""
        return self.painter.policy.model

    @property
    def sampling(self) -> Any:
        """The recipe's sampling block."""
        return self.painter.sampling

    @property
    def accelerator(self) -> Any:
        return self.painter.accelerator

    @property
    def seed(self) -> int:
        return self.painter.seed

    def progress(self, what: str, items: Sequence[T]) -> Iterable[T]:
        """`items`, with a bar on a terminal and a line now and then elsewhere; nothing where there are none."""
        if not items or not self.accelerator.is_main_process:
            return items
        return track(items, what) if sys.stderr.isatty() else self._spoken(what, items)

    def _spoken(self, what: str, items: Sequence[T]) -> Iterator[T]:
        started = spoken = time.monotonic()
        for number, item in enumerate(items):
            yield item
            now = time.monotonic()
            if now - spoken > SPEAK_EVERY:
                spoken, share = now, (number + 1) / len(items)
                self.say(f"{what}: {share:.0%}, {(now - started) * (1 / share - 1):.0f} s left")
