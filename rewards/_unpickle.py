"""The tensors of a pickled module, without running any of its code.

Some weights are published as a whole pickled nn.Module, which Python would rebuild by importing and calling whatever
the file names. Here every name but the few that make up a tensor stands for an empty object that takes what it is
given; the tree of these objects holds the parameters and buffers under their names.
"""

import pickle
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from rewards._errors import RewardError
from rewards._load import read_state, refuse_torchscript

_TENSORS = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_parameter_with_state"),
    ("torch.storage", "UntypedStorage"),
    ("torch.storage", "TypedStorage"),
    ("torch", "Size"),
    ("torch", "device"),
    *(("builtins", name) for name in ("set", "frozenset", "dict", "list", "tuple", "bytearray", "complex")),
}


class _Empty:
    """Stands for any class or function: takes all arguments, keeps its state."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Empty":
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = "builtins" if module == "__builtin__" else module  # its name in protocol 2
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if (module, name) in _TENSORS or is_dtype or (module == "torch" and name.endswith("Storage")):
            return super().find_class(module, name)
        return _Empty


def read_module(file: Path) -> dict[str, Tensor]:
    """The state dict in a file, be it one or a pickled module; in float32."""
    refuse_torchscript(file)
    try:
        return read_state(file)
    except RewardError as not_a_state_dict:
        try:
            pickles = ModuleType("pickles")
            vars(pickles).update(Unpickler=_Unpickler, load=lambda f, **settings: _Unpickler(f, **settings).load())
            tree = torch.load(file, map_location="cpu", weights_only=False, pickle_module=pickles)
        except Exception as error:  # a damaged file raises what its bytes happen to mean
            raise not_a_state_dict from error
        state = dict(_tensors(tree))
        if not state:
            raise RewardError(f"{file} holds no weights. Give a file of weights.") from None
        return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def _tensors(module: Any, prefix: str = "") -> list[tuple[str, Tensor]]:
    attributes = getattr(module, "__dict__", {})
    left_out = attributes.get("_non_persistent_buffers_set", set())
    found = []
    for kind in ("_parameters", "_buffers"):
        for name, tensor in (attributes.get(kind) or {}).items():
            if isinstance(tensor, Tensor) and name not in left_out:
                found.append((f"{prefix}{name}", tensor.detach()))
    for name, child in (attributes.get("_modules") or {}).items():
        found += _tensors(child, f"{prefix}{name}.")
    return found
