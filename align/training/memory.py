"""Memory that runs out in an update: told with what to change, or, where the recipe says so, tried in smaller pieces.

Rows are summed before they are divided (update.py), so half the micro-batch is the same update. Only what comes before
the optimiser's step is tried again: nothing has moved then, and what the objective had gathered is put back.
"""

import gc
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import torch
from accelerate import Accelerator

from align.errors import UserError
from align.processes import gather_object
from rewards._numerals import counted

Done = TypeVar("Done")
SAID = ("out of memory", "can't allocate memory", "not enough memory")
"""By devices that have no exception of their own."""


class Shortage(RuntimeError):
    """Memory ran out on a process before anything had moved."""


class Pieces:
    """The rows of one forward pass, `size` (None: all that a process has); `auto`: halved when memory runs out."""

    def __init__(self, size: int | None, *, auto: bool, accelerator: Accelerator, say: Callable[[str], None]):
        self.size, self.auto, self.accelerator, self.say = size, auto, accelerator, say

    @property
    def agree(self) -> Callable[[bool], bool] | None:
        """For `update`: whether memory ran out on any process. None where nobody else has to know."""
        if not self.auto or self.accelerator.num_processes == 1:
            return None
        return lambda short: any(gather_object([short]))

    def fit(self, attempt: Callable[[int | None], Done], objective: Any, rows: int, step: int) -> Done:
        """`attempt(size)`, and again with half the size while memory does not suffice. rows: those of the whole update;
        step: its number, from 0."""
        share = -(-rows // self.accelerator.num_processes)
        while True:
            before = _gathered(objective)
            try:
                return attempt(self.size)
            except (RuntimeError, MemoryError) as error:
                if not exhausted(error):
                    raise
                said, again = _first_line(error), self.auto and isinstance(error, Shortage)
            _put_back(objective, before)  # outside the handler: the error holds on to what had filled the memory
            size = min(self.size or share, share)
            if not again or size == 1:
                what = f"train: out of memory in update {step + 1} with {counted(size, 'row')} at once ({said})."
                raise UserError(f"{what} {_way(size)}")
            self.size = -(-size // 2)
            _release()
            self.say(
                f"out of memory in update {step + 1} with {counted(size, 'row')} at once: going on with {self.size}"
            )


def exhausted(error: BaseException) -> bool:
    """Whether an error means that memory ran out."""
    if isinstance(error, Shortage | MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in SAID)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or "no memory").splitlines()[0][:200]


def shortage(error: BaseException) -> str:
    """What an error says if memory ran out; "" for any other."""
    return _first_line(error) if exhausted(error) else ""


def _way(size: int) -> str:
    less = "model.decode_chunk=1, model.checkpoint_blocks=true, rewards.NAME.offload=true or model.quantize=nf4"
    kept = "The checkpoints before it are kept."
    if size == 1:
        return f"There is nothing left to cut: set {less}; --dry-run says what a recipe needs. {kept}"
    return (
        f"Set train.micro_batch_size={size // 2}, which changes no result, or train.auto_micro_batch=true, which finds "
        f"it; or {less}. --dry-run says what a recipe needs. {kept}"
    )


def _owner(objective: Any) -> Any:
    return getattr(objective, "__self__", objective)  # a move may be a method


def _gathered(objective: Any) -> dict[str, Any]:
    """What an objective keeps of the micro-batches it has seen: its lists and counts."""
    held = vars(_owner(objective)) if hasattr(_owner(objective), "__dict__") else {}
    return {k: list(v) if isinstance(v, list) else v for k, v in held.items() if isinstance(v, list | int | float)}


def _put_back(objective: Any, gathered: dict[str, Any]) -> None:
    for name, value in gathered.items():
        setattr(_owner(objective), name, value)


def _release() -> None:
    gc.collect()
    for device in (torch.cuda, getattr(torch, "mps", None)):
        with suppress(Exception):  # a device that is not there has nothing to release
            device.empty_cache()  # type: ignore[union-attr]
