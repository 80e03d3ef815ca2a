"""Operations on the meta device, of which each is asked once for its output's shape: a network repeats few of them many
times, and to be told anew costs far more than to remember."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class Strided(NamedTuple):
    """What a new tensor is like."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def made(self) -> Tensor:
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device="meta")


class Repeated:
    """Calls operations and counts their FLOPs (2 a multiply-add). Those that give nothing but new tensors are called
    once for each shape, stride, dtype and setting of what they are given; views and writes in place every time."""

    def __init__(self) -> None:
        self.makes: dict[Any, bool] = {}
        """Operation -> whether it neither writes into what it is given nor views it, as its schema says."""
        self.seen: dict[Any, tuple[Any, float] | None] = {}
        """What was asked -> what came, and its FLOPs; None where that has to be asked every time."""

    def __call__(self, func: Any, args: Any, kwargs: Any) -> tuple[Any, float]:
        """(Its output, its FLOPs)."""
        key = self._key(func, args, kwargs)
        if key is not None and (known := self.seen.get(key)) is not None:
            kind, flops = known
            return (kind.made() if isinstance(kind, Strided) else tuple(one and one.made() for one in kind)), flops
        out = func(*args, **kwargs)
        count = flop_registry.get(func._overloadpacket)
        flops = float(count(*args, **kwargs, out_val=out)) if count is not None else 0.0
        if key is not None and key not in self.seen:
            kind = _kind(out, (args, kwargs))
            self.seen[key] = (kind, flops) if kind is not None else None
        return out, flops

    def _key(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func not in self.makes:
            schema = func._schema
            self.makes[func] = not any(one.alias_info for one in (*schema.arguments, *schema.returns))
        if not self.makes[func]:
            return None
        try:
            key = func, _given(args), _given(tuple(kwargs.items()))
            hash(key)
        except (TypeError, RuntimeError):  # a setting that has no hash, a tensor that has no strides
            return None
        return key


def _given(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, tuple | list):
        return tuple([_given(one) for one in value])
    return type(value), value  # 1, 1.0 and True are equal, and not the same setting


def _kind(out: Any, given: Any) -> Any:
    """What makes `out` anew; None where it is more than new tensors, each in a storage of its own and just as large."""
    outs = out if isinstance(out, tuple) else (out,)
    tensors = [one for one in outs if isinstance(one, Tensor)]
    if not tensors or any(one is not None and not (isinstance(one, Tensor) and one.is_meta) for one in outs):
        return None
    old = {leaf.untyped_storage()._cdata for leaf in tree_leaves(given) if isinstance(leaf, Tensor)}
    if len({one.untyped_storage()._cdata for one in tensors} - old) < len(tensors):
        return None
    kinds = tuple(one if one is None else Strided(tuple(one.shape), one.stride(), one.dtype) for one in outs)
    sizes = [kind.made().untyped_storage().nbytes() for kind in kinds if kind]
    if sizes != [one.untyped_storage().nbytes() for one in tensors]:
        return None
    return kinds if isinstance(out, tuple) else kinds[0]
