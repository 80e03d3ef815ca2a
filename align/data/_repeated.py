"""A batch source whose every batch comes several times in a row, for updates that share the steps before the window."""

from collections.abc import Iterator
from typing import Any

from align.data._base import Batch, BatchSource


class Repeated:
    """`source`, each batch `times` times."""

    def __init__(self, source: BatchSource, times: int):
        self.source, self.times = source, times
        self.before, self.used = source.state_dict(), 0
        """The source's state before the present batch, and how often that has come."""

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.source)
        while True:
            self.before = self.source.state_dict()
            batch = next(batches)
            while self.used < self.times:
                self.used += 1
                yield batch
            self.used = 0

    def __getattr__(self, name: str) -> Any:
        """What else the source can do."""
        if name == "source":  # not there yet
            raise AttributeError(name)
        return getattr(self.source, name)

    def state_dict(self) -> dict[str, Any]:
        return {"source": self.before, "used": self.used}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.source.load_state_dict(state["source"])
        self.before, self.used = state["source"], state["used"]


def repeated(source: Any, sampling: Any) -> Any:
    """The source as the sampling block's levers ask for it."""
    times = sampling.levers.reuse if sampling.levers is not None else 1
    return Repeated(source, times) if times > 1 else source
