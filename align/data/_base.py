"""What feeds the trainer: batch sources that can be stopped and taken up again, and how a batch is cut up."""

from collections.abc import Iterator
from typing import Any, Protocol, Self


class Batch(Protocol):
    """The rows of one whole update, the same on every process; anything heavy is loaded when it is cut, or later. One
    whose rows were drawn for several updates says by `used_up: bool` whether this is the last of them."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice) -> Self: ...


class BatchSource(Protocol):
    """Yields one global batch an update, the same on every process, for as long as it is asked.

    `state_dict` is JSON-able and taken between batches: loaded into a fresh source, the next batch is the one that
    would have come. A source that trains on the policy's own samples says there what it may not lose.
    """

    def __iter__(self) -> Iterator[Batch]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def prompts_of(source: Any) -> list[str]:
    """All prompts that it trains on, as far as they are known now; [] of a source that cannot say."""
    return source.all_prompts() if hasattr(source, "all_prompts") else []


def micro_batches(batch: Any, size: int | None, *, rank: int = 0, num_processes: int = 1) -> list[Any]:
    """This process's rows of a global batch, consecutive, at most `size` in a piece (None: all in one).

    Shares differ by at most one row; a process may get none, and then the list is empty.
    """
    rows = len(batch)
    start, stop = rank * rows // num_processes, (rank + 1) * rows // num_processes
    step = size or max(1, stop - start)
    return [batch[i : min(i + step, stop)] for i in range(start, stop, step)]
