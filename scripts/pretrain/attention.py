"""Where the layers of stage flow look: what share of an image token's attention its neighbours have, the mean of the
heads and the head where it is most, beside what an even look at all tokens would give. A layer whose heads all look
nearly evenly, and alike, has not learnt to look.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from scripts.pretrain import flow
from scripts.pretrain.common import DEVICE, generator
from scripts.pretrain.pool import Pool

SIDE = 8
TIMES = (0.3, 0.7)


def neighbours() -> Tensor:
    """(64, 64): 1 where two cells touch."""
    cells = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE))
    return ((cells[:, None] - cells).abs().amax(-1) == 1).float()


class Looking(TorchFunctionMode):
    """Inside, each call of torch's attention whose first 64 tokens are the image's adds to `shares` and `even`."""

    def __init__(self) -> None:
        super().__init__()
        self.shares: list[Tensor] = []
        self.even: list[float] = []
        """What an even look would give: the mean number of neighbours by the number of tokens, equal ones counted."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query, key = args[0].detach(), args[1].detach()
            mask, touching = kwargs.get("attn_mask"), neighbours().to(query)
            bias = key.new_zeros(key.shape[2]) if mask is None else mask.flatten()
            weights = (query[:, :, : SIDE**2] @ key.mT / math.sqrt(query.shape[-1]) + bias).softmax(-1)
            self.shares.append((weights[..., : SIDE**2] * touching).sum(-1).mean((0, 2)))
            self.even.append(float(touching.sum(-1).mean() / bias.exp().sum()))
        return func(*args, **kwargs)


@torch.no_grad()
def looks(time: float, count: int = 128, seed: int = 999) -> Looking:
    """One call of stage flow on `count` scenes that no stage trains on."""
    g, pipe = generator(seed, 42), flow.load().to(DEVICE)
    x, ids, _ = Pool(seed, window=1).batch(0, count, g)
    x_t = torch.lerp(x, torch.randn(x.shape, generator=g).to(DEVICE), time)
    states, pooled, _ = flow.encode(pipe.text_encoder, ids)
    with Looking() as seen:
        flow.velocity(pipe.transformer, x_t, torch.full((count,), time, device=DEVICE), states, pooled)
    return seen


def main() -> None:
    """Print the table."""
    print("| time | layer | neighbours, mean of the heads | head with most | even |\n|---|---|---|---|---|")
    for time in TIMES:
        seen = looks(time)
        for layer, (shares, even) in enumerate(zip(seen.shares, seen.even, strict=True)):
            print(f"| {time:.1f} | {layer} | {shares.mean():.2f} | {shares.max():.2f} | {even:.2f} |")
