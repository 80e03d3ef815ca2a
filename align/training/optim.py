"""The optimiser, and the learning rate as a function of the update's number: no scheduler object, no state.

    rate(i) = lr min(1, (i + 1) / num_warmup) shape((i - num_warmup) / (num_updates - num_warmup)),   i = 0, 1, ...

shape(x) = 1 (constant), 1 - x (linear), (1 + cos(pi x)) / 2 (cosine). A prepared torch scheduler would be stepped once
per process by Accelerate; a function of i cannot be, and needs nothing stored to resume.
"""

import importlib.util
import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from align.errors import UserError
from align.registry import ComponentConfig


class OptimConfig(ComponentConfig):
    """AdamW (Loshchilov & Hutter 2017, arXiv 1711.05101) or SGD with Nesterov's momentum, and the learning rate."""

    algorithm: Literal["adamw", "adamw8bit", "sgd"] = "adamw"
    """adamw8bit keeps the moments in 8 bits (needs the extra: pip install "diffalign[bnb]"); sgd has
    Nesterov's momentum, as in PyTorch, and takes neither betas nor eps."""
    lr: float = Field(default=1e-4, gt=0)
    """The highest rate: the one after the warm-up."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Decay of the mean and of the mean square of the gradient."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """sgd; 0 is plain descent."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the mean square."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decay per update is lr * weight_decay."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the rate goes on after the warm-up: level, or down to 0 along a line or half a cosine."""
    num_warmup: int = Field(default=0, ge=0)
    """Updates over which the rate rises linearly from lr / num_warmup."""


def build(config: OptimConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser over `parameters`, a fixed list."""
    if config.algorithm == "sgd":
        settings: dict[str, Any] = {"momentum": config.momentum, "nesterov": config.momentum > 0}
        return torch.optim.SGD(parameters, lr=config.lr, weight_decay=config.weight_decay, **settings)
    common = {"lr": config.lr, "betas": config.betas, "eps": config.eps, "weight_decay": config.weight_decay}
    if config.algorithm == "adamw":
        return torch.optim.AdamW(parameters, fused=True, **common)
    if problem := missing(config):
        raise UserError(f"optim.algorithm={config.algorithm}: {problem}")
    try:
        import bitsandbytes  # type: ignore[import-not-found]  # an optional extra
    except ImportError as error:  # of a library that it needs
        raise UserError(
            f"optim.algorithm=adamw8bit: bitsandbytes cannot be imported ({error}). Install it again, or set "
            "optim.algorithm=adamw."
        ) from None
    return bitsandbytes.optim.AdamW8bit(parameters, **common)


def missing(config: OptimConfig) -> str | None:
    """What stands in the way of the algorithm on this machine."""
    if config.algorithm != "adamw8bit" or importlib.util.find_spec("bitsandbytes") is not None:
        return None
    return (
        "needs the package bitsandbytes, which is not installed. "
        'Install it (pip install "diffalign[bnb]"), or set optim.algorithm=adamw.'
    )


def note(config: OptimConfig, num_updates: int) -> str | None:
    """What is to be said of settings that undo the training."""
    if config.num_warmup < num_updates or config.num_warmup <= 1:
        return None
    share = learning_rate(config, num_updates - 1, num_updates) / config.lr
    return (
        f"optim.num_warmup={config.num_warmup} is not below train.num_updates={num_updates}: the rate gets no further "
        f"than {share:.0%} of optim.lr"
    )


def learning_rate(config: OptimConfig, update: int, num_updates: int) -> float:
    """The rate of update number `update` (0 is the first) of `num_updates`; above 0 up to the last one."""
    if update < config.num_warmup:
        return config.lr * (update + 1) / config.num_warmup
    x = (update - config.num_warmup) / max(1, num_updates - config.num_warmup)
    shape = {"constant": 1.0, "linear": 1 - x, "cosine": (1 + math.cos(math.pi * x)) / 2}[config.schedule]
    return config.lr * shape
