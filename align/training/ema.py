"""An exponential moving average of the trained parameters.

    shadow <- d shadow + (1 - d) value,   d = min(decay, (1 + n) / (10 + n)) at update n = 0, 1, ...

The ramp is TensorFlow's (ExponentialMovingAverage with num_updates) and diffusers'. Without it the average of a run
shorter than 1/(1 - decay) updates would be what the run began with.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class EMA:
    """Averages `parameters`; `applied()` puts the average in their place for as long as it lasts."""

    def __init__(self, parameters: list[nn.Parameter], decay: float):
        self.parameters = parameters
        self.decay = decay
        self.shadow = [p.detach().clone() for p in parameters]
        self.count = 0

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        self.count += 1
        for average, parameter in zip(self.shadow, self.parameters, strict=True):
            average.lerp_(parameter, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, average in zip(self.parameters, self.shadow, strict=True):
            value = parameter.clone()
            parameter.copy_(average)
            average.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        return {"shadow": self.shadow, "count": self.count}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]
        for average, value in zip(self.shadow, state["shadow"], strict=True):
            average.copy_(value)
