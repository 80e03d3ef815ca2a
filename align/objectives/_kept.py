"""What sampling.levers.reuse keeps of an update for the ones after it: where each row's window begins."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from align.objectives._reward import Gather


class Kept:
    """The states of a whole batch, the same on every process, so that a checkpoint of one has them all."""

    def __init__(self, sampling: Any):
        self.times = sampling.levers.reuse if sampling is not None and sampling.levers is not None else 1
        self.updates = 0
        self.states: Tensor | None = None
        self._stale: Tensor | None = None

    def before_update(self, micro_batches: Sequence[Any], begun: Callable[[Any], Tensor], gather: Gather) -> None:
        """`begun` runs a micro-batch's prefix. In the last update of a batch its first row is run again, by
        the process that has it, for the metric."""
        if self.times == 1:
            return
        place = self.updates % self.times
        if place == 0:
            found = [begun(batch) for batch in micro_batches]
            self.states = gather(torch.cat(found) if found else torch.empty(0))
        elif place == self.times - 1 and micro_batches:
            first = micro_batches[0][0:1]
            assert self.states is not None
            if first.indices[0] % len(self.states):
                return
            then, now = self.states[:1], begun(first)
            self._stale = ((now - then.to(now)).norm() / now.norm())[None]

    def of(self, indices: Sequence[int]) -> Tensor | None:
        """The states of rows by their sample indices; None where nothing is kept."""
        if self.states is None:
            return None
        return self.states[[index % len(self.states) for index in indices]]

    def said(self) -> dict[str, Tensor]:
        """The metric, once."""
        stale, self._stale = self._stale, None
        return {} if stale is None else {"stale": stale}

    def after_update(self) -> None:
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        return {} if self.states is None else {"kept": {"updates": self.updates, "states": self.states}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "kept" in state:
            self.updates, self.states = state["kept"]["updates"], state["kept"]["states"]
