"""Which adapters take part in a network's call, and at which weight.

    W = W0 + sum_i w_i s_i B_i A_i,   s_i = alpha_i / r_i

PEFT's switches also set `requires_grad`. Here it is put back at once, inside as well as afterwards: what is trained is
decided once, not by who is called, and a graph may be waiting for its backward pass.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def entered(layers: Sequence[Any], weights: Mapping[str, float]) -> Iterator[None]:
    """Inside, exactly the adapters {name: weight} are on, times whatever strength was set around; a weight of 0 leaves
    one out, and none at all is the base network bit for bit. Inside `disabled` every role is the base."""
    active = {name: weight for name, weight in weights.items() if weight != 0}
    on = [layer for layer in layers if not layer.disable_adapters]
    wanted = []
    for layer in on:
        _, names, scaling = _stance(layer)
        counted = {name: scale * active.get(name, 1.0) for name, scale in scaling.items()}
        wanted.append((False, list(active), counted) if active else (True, names, scaling))
    with _standing(on, wanted):
        yield


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


def checkpointed(around: Callable[[], AbstractContextManager[Any]] = nullcontext) -> Callable[..., Any]:
    """A diffusers network's `gradient_checkpointing_func`: a block is computed again with the adapters that were on in
    the call, whatever has been switched since, and inside `around`."""

    def call(block: nn.Module, *args: Any) -> Any:
        layers = [module for module in block.modules() if hasattr(module, "lora_A")]
        stance = [_stance(layer) for layer in layers]

        @contextmanager
        def again() -> Iterator[None]:
            same = [_stance(layer) for layer in layers] == stance
            with around(), nullcontext() if same else _standing(layers, stance):
                yield

        return checkpoint(block.__call__, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), again()))

    return call


Stance = tuple[bool, list[str], dict[str, float]]
"""Of a layer: whether its adapters are disabled, which are on, and {name: scale}."""


def _stance(layer: Any) -> Stance:
    return layer.disable_adapters, list(layer.active_adapters), dict(layer.scaling)


@contextmanager
def _standing(layers: Sequence[Any], stances: Sequence[Stance]) -> Iterator[None]:
    before, flags = [_stance(layer) for layer in layers], _flags(layers)

    def put(states: Sequence[Stance]) -> None:
        for layer, (off, names, scaling) in zip(layers, states, strict=True):
            layer.enable_adapters(not off)
            layer.set_adapter(names)
            layer.scaling.update(scaling)
        _put_back(flags)

    put(stances)
    try:
        yield
    finally:
        put(before)


def _flags(layers: Sequence[Any]) -> list[tuple[nn.Parameter, bool]]:
    return [(p, p.requires_grad) for layer in layers for n, p in layer.named_parameters() if "lora_" in n]


def _put_back(flags: list[tuple[nn.Parameter, bool]]) -> None:
    for parameter, value in flags:
        parameter.requires_grad_(value)
