"""Heads that are linear layers one after another, without activations between them: one affine map.

W_n (... (W_1 u + b_1) ...) + b_n = w . u + b
"""

from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from rewards._errors import RewardError
from rewards._load import read_state


def affine(head: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """[(weight (out, in), bias (out,)), ...] with a last `out` of 1 -> the (in,) weight and () bias of their
    composition, in float64."""
    size = head[0][0].shape[1]
    weight, bias = torch.eye(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    for layer, shift in head:
        weight, bias = layer.double() @ weight, layer.double() @ bias + shift.double()
    return weight[0], bias[0]


def read_head(file: Path, prefix: str) -> list[tuple[Tensor, Tensor]]:
    """The layers PREFIX.N.weight, PREFIX.N.bias of a file, by N; they must fit together and end in one number."""
    state = read_state(file)
    numbers = sorted(
        {int(n) for n in (key.split(".")[1] for key in state if key.startswith(f"{prefix}.")) if n.isdigit()}
    )
    keys = [f"{prefix}.{number}.{part}" for number in numbers for part in ("weight", "bias")]
    if not keys or set(keys) != state.keys():
        raise RewardError(f"{file} does not hold {prefix}.N.weight and {prefix}.N.bias alone. Give another head.")
    layers = [(state[f"{prefix}.{number}.weight"], state[f"{prefix}.{number}.bias"]) for number in numbers]
    sizes = [weight.shape for weight, _ in layers]
    if sizes[-1][0] != 1 or any(after[1] != before[0] for before, after in pairwise(sizes)):
        raise RewardError(f"{file}: layers of shapes {[tuple(size) for size in sizes]} are no head. Give another head.")
    return layers
