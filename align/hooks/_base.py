"""What happens beside the loop: a hook looks at the run between updates, adds to its metrics, and may end it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor


@dataclass
class Chosen:
    """The parameters that a hook has picked as the run's result, and the update that they come from."""

    step: int
    tensors: dict[str, Tensor]


@dataclass
class State:
    """Where a run stands. Hooks read it on every process alike, so that all take the same decisions."""

    num_updates: int
    step: int = 0
    """Updates done; 0 before the first."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """The record of this step; what a hook adds is written with it."""
    pictures: dict[str, Path] = field(default_factory=dict)
    """Name -> the sheet that a hook has written at this step, for the trackers."""
    stop: str | None = None
    """Why the run should end after this update, or None."""
    base: Path | None = None
    """The checkpoint that the run was taken up from, or None."""
    interrupted: str | None = None
    """The signal that ended the run early, or None."""
    chosen: Chosen | None = None
    """None: the last parameters are the result."""
    average: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Inside `with state.average():` the trained parameters are their moving average, where the run keeps one."""


@dataclass(frozen=True)
class Surroundings:
    """What a hook may be built from: it is constructed as `Class(config, surroundings)`."""

    output: Path
    """The run's folder."""
    accelerator: Any
    trainable: Any
    """What the run hands over in the end."""
    painter: Any
    """Images of a role for prompts, and their scores (align.policy.painter.Painter)."""
    build_rewards: Callable[[Any], Any]
    """{label: reward config} -> rewards.Composite on the run's device."""
    recipe: dict[str, Any]
    """The resolved recipe, JSON-able."""
    seed: int


class Hook:
    """Does nothing. Hooks are called in their order on every process; only the main one writes files."""

    first: ClassVar[str] = ""
    """Said before `start` of a run that begins, where that takes a while."""
    last: str = ""
    """Said before `conclude`, where that takes a while."""

    def start(self, state: State) -> None:
        """Before the first update of this process: at step 0, or where the run was taken up again."""

    def after_update(self, state: State) -> None:
        """After each update."""

    def finish(self, state: State) -> None:
        """After the last update, also of an interrupted run."""

    def conclude(self, state: State, poll: Callable[[], None]) -> dict[str, Any]:
        """After a run that ended by itself, with its result as the parameters: what goes into the summary under this
        hook's label, JSON-able. `poll` may raise between pieces of work, to end early."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


@contextmanager
def running(hooks: Sequence[Hook], state: State, say: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Starts the hooks, and finishes them however the run ends."""
    try:
        for hook in hooks:
            if hook.first and state.step == 0:
                say(hook.first)
            hook.start(state)
        yield
    finally:
        for hook in hooks:
            hook.finish(state)
