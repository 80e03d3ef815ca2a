"""An exponential moving average of the trained parameters: shadow <- decay shadow + (1 - decay) value."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """Averages `parameters`; `applied()` puts the average in their place for as long as it lasts."""

    def __init__(self, parameters: list[nn.Parameter], decay: float):
        self.parameters = parameters
        self.decay = decay
        self.shadow = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self) -> None:
        for average, parameter in zip(self.shadow, self.parameters, strict=True):
            average.lerp_(parameter, 1 - self.decay)

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

    def state_dict(self) -> dict[str, list[Tensor]]:
        return {"shadow": self.shadow}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        for average, value in zip(self.shadow, state["shadow"], strict=True):
            average.copy_(value)
