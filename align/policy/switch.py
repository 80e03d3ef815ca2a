"""Which adapters take part in a network's call, and at which weight.

    W = W0 + sum_i w_i s_i B_i A_i,   s_i = alpha_i / r_i

PEFT's switches also set `requires_grad`. Here it is put back at once, inside as well as afterwards: what is trained is
decided once, not by who is called, and a graph may be waiting for its backward pass.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def entered(layers: Sequence[Any], weights: Mapping[str, float]) -> Iterator[None]:
    """Inside, exactly the adapters {name: weight} are on, times whatever strength was set around; a weight of 0 leaves
    one out, and none at all is the base network bit for bit. Inside `disabled` every role is the base."""
    active = {name: weight for name, weight in weights.items() if weight != 0}
    on = [layer for layer in layers if not layer.disable_adapters]
    before = [(list(layer.active_adapters), dict(layer.scaling)) for layer in on]
    flags = _flags(layers)
    try:
        for layer in on:
            if not active:
                layer.enable_adapters(False)
                continue
            layer.set_adapter(list(active))
            for name in active.keys() & layer.scaling.keys():
                layer.scaling[name] *= active[name]
        _put_back(flags)
        yield
    finally:
        for layer, (names, scaling) in zip(on, before, strict=True):
            if not active:
                layer.enable_adapters(True)
            layer.set_adapter(names)
            layer.scaling.update(scaling)
        _put_back(flags)


@contextmanager
def disabled(layers: Sequence[Any]) -> Iterator[None]:
    """Inside, the network is the base network bit for bit, in every role."""
    before, flags = [layer.disable_adapters for layer in layers], _flags(layers)
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer, was_disabled in zip(layers, before, strict=True):
            layer.enable_adapters(not was_disabled)
        _put_back(flags)


@contextmanager
def scaled(layers: Sequence[Any], name: str, strength: float) -> Iterator[None]:
    """Inside, the adapter `name` counts `strength` times; 0 is the base bit for bit (DoRA's trained norm included)."""
    if strength == 0:
        with disabled(layers):
            yield
        return
    for layer in layers:
        layer.set_scale(name, strength)
    try:
        yield
    finally:
        for layer in layers:
            layer.set_scale(name, 1.0)


def _flags(layers: Sequence[Any]) -> list[tuple[nn.Parameter, bool]]:
    return [(p, p.requires_grad) for layer in layers for n, p in layer.named_parameters() if "lora_" in n]


def _put_back(flags: list[tuple[nn.Parameter, bool]]) -> None:
    for parameter, value in flags:
        parameter.requires_grad_(value)
