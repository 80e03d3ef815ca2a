"""What a round moves: each trainable with its own optimiser, rate, clip and fp16 scale, one at a time.

A single trainable is the case of one. While one moves, the others carry no gradient: what a loss reads of them is taken
as it stands, and nothing is left in their `grad`.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator

from align.objectives._base import Move, Objective
from align.policy.cast import MAIN, Cast, Trained
from align.policy.trainable import Trainable
from align.training import optim
from align.training.optim import OptimConfig


@dataclass
class Mover:
    """One trainable and what moves it."""

    name: str
    trainable: Trainable
    config: OptimConfig
    max_grad_norm: float | None
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None

    def set_rate(self, update: int, num_updates: int) -> float:
        """Sets the learning rate of update number `update` and returns it."""
        rate = optim.learning_rate(self.config, update, num_updates)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        return rate

    def over_eps(self, norm: float) -> dict[str, float]:
        """{"grad_over_eps": root mean square of the clipped gradient over Adam's epsilon}; nothing for SGD.

        Below 1 the steps shrink with the gradient, and nothing seems to be learnt: lower optim.eps.
        """
        if self.config.algorithm == "sgd":
            return {}
        count = sum(parameter.numel() for parameter in self.trainable.parameters())
        clipped = norm if self.max_grad_norm is None else min(norm, self.max_grad_norm)
        return {"grad_over_eps": clipped / math.sqrt(count) / self.config.eps}

    def named(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Metrics as they are recorded: under the trainable's name where there are several."""
        return dict(values) if self.name == MAIN else {f"{self.name}/{key}": value for key, value in values.items()}

    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        end = "" if self.name == MAIN else f"-{self.name}"
        own = {"trainable": self.trainable, "optimiser": self.optimiser, "scaler": self.scaler}
        return {f"{key}{end}": part for key, part in own.items() if part is not None}


def movers(config: Any, base: OptimConfig, trainable: Trainable, cast: Cast, accelerator: Accelerator) -> list[Mover]:
    """The run's own trainable first, then those of the cast; `config` is the recipe's train block."""
    built = []
    for name, (one, kind) in {MAIN: (trainable, Trained()), **cast.trained}.items():
        one.prepare(accelerator)
        own = OptimConfig.model_validate({**base.model_dump(), "lr": base.lr * kind.rate, **kind.optim})
        limit: Any = config.max_grad_norm if kind.max_grad_norm == "recipe" else kind.max_grad_norm
        scaler = config.scaler(accelerator.device)
        built.append(Mover(name, one, own, limit, optim.build(own, one.parameters()), scaler))
    return built


def handed_over(result: Trainable, parts: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of the adapter that is handed over where it is not the run's own: in which part it lies,
    by which name, with which settings."""
    part = next(name for name, one in parts.items() if getattr(one, "adapter", one) is result)
    adapter: Any = result
    return {"result": {"part": part, "name": adapter.name, "adapter": adapter.config.model_dump(mode="json")}}


def moves(objective: Objective, step: int) -> list[Move]:
    """The round of update number `step` (the first is 0)."""
    declared = getattr(objective, "moves", None)
    return [Move(MAIN, objective)] if declared is None else list(declared(step))


@contextmanager
def alone(moving: Trainable, all_trained: Iterable[Trainable]) -> Iterator[None]:
    """Inside, the parameters of the trainables that do not move ask for no gradient."""
    still = [p for other in all_trained if other is not moving for p in other.parameters()]
    for parameter in still:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in still:
            parameter.requires_grad_()
