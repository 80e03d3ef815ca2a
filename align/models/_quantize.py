"""A frozen network whose linear layers keep their weights in 8 or 4 bits; an adapter on top is trained as ever.

    y = x W_q^T + b,   dL/dx = dL/dy W_q,   W_q = dequantise(quantise(W))

(QLoRA, Dettmers et al. 2023, arXiv 2305.14314, eq. 5.) W_q is made anew for each product, forwards and backwards, and a
graph keeps none of it. The packages' own layers are not used: torchao's keeps each W_q in the graph; bitsandbytes'
int8 also rounds x, of which its gradient knows nothing, and its NF4 on some CPUs goes over to a kernel without any.
"""

import importlib.util
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from align.errors import UserError

Quantize = Literal["nf4", "int8", "torchao-int8"]
BLOCK = 64  # weights that share a scale in NF4, as in the paper


class Method(NamedTuple):
    """quantise: W (out, in) -> tensors to keep; dequantise: these, (out, in) and a dtype -> W_q."""

    package: str
    extra: str  # of this project, that installs the package
    quantise: Callable[[Tensor], tuple[Tensor, ...]]
    dequantise: Callable[[tuple[Tensor, ...], tuple[int, int], torch.dtype], Tensor]
    bits: float  # kept of a weight, scales included


def _to_nf4(weight: Tensor) -> tuple[Tensor, ...]:
    from bitsandbytes.functional import quantize_4bit  # type: ignore[import-not-found]

    packed, state = quantize_4bit(weight.contiguous(), blocksize=BLOCK, quant_type="nf4")
    return packed, state.absmax, state.code


def _from_nf4(kept: tuple[Tensor, ...], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    from bitsandbytes.functional import QuantState, dequantize_4bit  # type: ignore[import-not-found]

    packed, absmax, code = kept
    state = QuantState(absmax, torch.Size(shape), code, BLOCK, "nf4", dtype)
    return dequantize_4bit(packed, state)


def _to_int8(weight: Tensor) -> tuple[Tensor, ...]:
    from bitsandbytes.functional import int8_vectorwise_quant  # type: ignore[import-not-found]

    rows, largest, _ = int8_vectorwise_quant(weight.half().contiguous())
    return rows, largest


def _from_int8(kept: tuple[Tensor, ...], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    from bitsandbytes.functional import int8_vectorwise_dequant  # type: ignore[import-not-found]

    return int8_vectorwise_dequant(*kept).to(dtype)


def _to_torchao(weight: Tensor) -> tuple[Tensor, ...]:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    layer = nn.Linear(*weight.shape[::-1], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    quantize_(layer, Int8WeightOnlyConfig())
    return (layer.weight.detach(),)


def _from_torchao(kept: tuple[Tensor, ...], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    packed: Any = kept[0]
    return packed.dequantize(dtype)


METHODS: dict[str, Method] = {
    "nf4": Method("bitsandbytes", "bnb", _to_nf4, _from_nf4, 4.5),
    "int8": Method("bitsandbytes", "bnb", _to_int8, _from_int8, 8),
    "torchao-int8": Method("torchao", "torchao", _to_torchao, _from_torchao, 8),
}


class QuantisedLinear(nn.Linear):
    """A frozen linear layer, (..., in) -> (..., out), that keeps its weight quantised; `weight` is W_q, made anew."""

    def __init__(self, layer: nn.Linear, method: Method):
        nn.Module.__init__(self)  # nn.Linear's own would make a weight
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.method, self.dtype = method, layer.weight.dtype
        weight = layer.weight.detach()
        plain = weight.float() if weight.dtype == torch.float64 else weight
        self.kept = _sizes(weight, method.bits) if weight.is_meta else method.quantise(plain)
        self.bias = layer.bias

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        if self.kept[0].is_meta:
            return torch.empty(self.out_features, self.in_features, dtype=self.dtype, device="meta")
        dtype = torch.float32 if self.dtype == torch.float64 else self.dtype  # the packages know none wider
        return self.method.dequantise(self.kept, (self.out_features, self.in_features), dtype).to(self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes kept in place of the weight."""
        return sum(part.nbytes for tensor in self.kept for part in _parts(tensor))

    def forward(self, input: Tensor) -> Tensor:
        return _Product.apply(input, self)  # type: ignore[return-value]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantisedLinear":
        """A cast of the module is one of W_q and the bias: scales keep their precision."""
        device = fn(torch.empty(0, dtype=torch.uint8, device=self.kept[0].device)).device
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        self.kept = tuple(tensor.to(device) for tensor in self.kept)
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """What is kept: it tells weights apart, and costs no memory."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        parts = [part for tensor in self.kept for part in _parts(tensor)]
        destination.update({f"{prefix}weight.{i}": part for i, part in enumerate(parts)})


class _Product(torch.autograd.Function):
    """x W_q^T + b, of which only x has a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantisedLinear) -> Tensor:
        ctx.layer = layer
        return linear(x, layer.weight.to(x.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] @ ctx.layer.weight.to(grads[0].dtype), None


def _sizes(weight: Tensor, bits: float) -> tuple[Tensor, ...]:
    """Without data, as many bytes as are kept."""
    return (torch.empty(round(weight.numel() * bits / 8), dtype=torch.uint8, device="meta"),)


def missing(method: str) -> str | None:
    """What stands in the way of this method on this machine."""
    wanted = METHODS[method]
    if importlib.util.find_spec(wanted.package) is not None:
        return None
    return (
        f"{method} needs the package {wanted.package}, which is not installed. "
        f'Install it (pip install "diffalign[{wanted.extra}]"), or remove model.quantize.'
    )


def size(module: nn.Module) -> tuple[int, int]:
    """Weights of a module, quantised or not: their number, and the bytes that they are kept in."""
    plain = list(module.parameters())
    quantised = [layer for layer in module.modules() if isinstance(layer, QuantisedLinear)]
    number = sum(p.numel() for p in plain) + sum(layer.in_features * layer.out_features for layer in quantised)
    return number, sum(p.nbytes for p in plain) + sum(layer.nbytes for layer in quantised)


def _parts(tensor: Tensor) -> list[Tensor]:
    """The plain tensors that a tensor is made of."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    return [tensor] if flatten is None else [getattr(tensor, name) for name in flatten()[0]]


def quantise(network: Any, method: str) -> None:
    """Quantises every linear layer of a diffusers network, in place, but those that diffusers keeps in float32."""
    device = next(network.parameters()).device
    if device.type != "meta" and (problem := missing(method)):
        raise UserError(f"model.quantize={method}: {problem}")
    exempt = getattr(network, "_keep_in_fp32_modules", None) or ()
    for path, parent in list(network.named_modules()):
        for name, child in list(parent.named_children()):
            inside = any(f"{part}." in f"{path}.{name}." for part in exempt)
            if type(child) is nn.Linear and not inside:
                setattr(parent, name, QuantisedLinear(child, METHODS[method]))
    network.save_pretrained = _refuse


def _refuse(*_: Any, **__: Any) -> None:
    raise UserError("model.quantize: a quantised network is not written, since it lost weight. Load it without.")
