"""What an update costs where tensors have shapes and no data: bytes alive at once, and FLOPs.

Every storage that is made or freed is added up. Attention is replaced by an operation that keeps what a fused kernel
keeps: queries, keys, values and the output, not the matrix of all pairs.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from align.plan.repeated import Repeated


class Peak(TorchDispatchMode):
    """Bytes of the storages that are alive at once and were made inside, and FLOPs (2 a multiply-add); `existing`
    tensors are not counted."""

    def __init__(self, existing: Sequence[Tensor] = ()):
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in existing}
        self.current = self.peak = 0
        self.flops = 0.0
        self.repeated = Repeated()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return args[0].new_ones((), device="cpu").item()  # a mask that lets all through, a score that is finite
        if func is torch.ops.aten._to_copy.default and args[0].is_meta and kwargs.get("device") == torch.device("cpu"):
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)  # of a few learnt numbers
        out, flops = self.repeated(func, args, kwargs)
        self.flops += flops
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return out

    def spike(self, size: float) -> None:
        """`size` more bytes, for a moment."""
        self.peak = max(self.peak, self.current + int(size))

    @contextmanager
    def stretch(self) -> Iterator["Stretch"]:
        """What a part of the work costs by itself, beside what is there already."""
        before, self.peak, found = self.peak, self.current, Stretch(self.current, self.flops)
        try:
            yield found
        finally:
            found.bytes, found.kept = self.peak - found.bytes, self.current - found.bytes
            found.flops = self.flops - found.flops
            self.peak = max(before, self.peak)

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.current += size
            self.peak = max(self.peak, self.current)
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.current -= size


class Stretch:
    """Of a part of the work: bytes at most beside what was there, bytes that are left of it, FLOPs."""

    def __init__(self, current: int, flops: float):
        self.bytes, self.kept, self.flops = current, 0, flops


class Once:
    """A network's forward whose calls without gradient and of the same shapes are made once: those after it cost the
    same, which is added, and give as much."""

    def __init__(self, network: Any, meter: Peak, counted: Callable[[], int]):
        """`counted`: rows of calls so far, the present one's included."""
        self.network, self.forward, self.meter = network, network.forward, meter
        self.counted, self.before = counted, 0
        self.seen: dict[Any, tuple[Any, Stretch]] = {}
        self.a_row = Stretch(0, 0.0)
        """One row of a call without gradient."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        rows, self.before = max(self.counted() - self.before, 1), self.counted()
        if torch.is_grad_enabled() or any(m._forward_hooks or m._forward_pre_hooks for m in self.network.modules()):
            return self.forward(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        key = tuple((tuple(tensor.shape), tensor.dtype) for tensor in tensors)
        if key not in self.seen:
            with self.meter.stretch() as found:
                out = self.forward(*args, **kwargs)
            self.seen[key] = tree_map_only(Tensor, _shape_of, out), found
            self.a_row = Stretch(found.bytes // rows, found.flops / rows)
            return out
        made, found = self.seen[key]
        self.meter.spike(found.bytes)
        self.meter.flops += found.flops
        return tree_map_only(_Shape, lambda shape: torch.empty(shape.shape, dtype=shape.dtype, device="meta"), made)

    @contextmanager
    def installed(self) -> Iterator["Once"]:
        self.network.forward = self
        try:
            yield self
        finally:
            self.network.forward = self.forward


class _Shape:
    def __init__(self, tensor: Tensor):
        self.shape, self.dtype = tensor.shape, tensor.dtype


def _shape_of(tensor: Tensor) -> Any:
    return _Shape(tensor)


@contextmanager
def fused_attention(meter: Peak) -> Iterator[None]:
    """Attention as a fused kernel stores it."""
    original = functional.scaled_dot_product_attention
    taken: Callable[..., Any] = lambda query, key, value, *_, **__: _Attention.apply(query, key, value, meter)  # noqa: E731
    functional.scaled_dot_product_attention = taken
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, meter: Peak) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out)
        ctx.meter = meter
        meter.flops += _flops(query, key, value)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, _ = ctx.saved_tensors
        ctx.meter.flops += 2.5 * _flops(query, key, value)  # the scores again, and four products for two
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def _flops(query: Tensor, key: Tensor, value: Tensor) -> float:
    return 2.0 * query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])
