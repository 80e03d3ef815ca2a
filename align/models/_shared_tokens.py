"""Equal tokens go through a transformer as one: they stay equal, and in attention the one counts for all n of them.

    sum over n equal keys k of exp(q k) v  =  exp(q k + log n) v

Exact but for rounding, for tokens that know nothing of their place, such as the zeros that Stable Diffusion 3 puts
where T5's states are missing. An adapter's dropout draws one mask for all of them.
"""

import math
from contextlib import nullcontext
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class _LastCounts(TorchFunctionMode):
    """Inside, torch's attention takes the last key for `count` equal ones."""

    def __init__(self, count: int):
        super().__init__()
        self.bias = math.log(count)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            bias = args[0].new_zeros(1, 1, 1, args[1].shape[2])
            bias[..., -1] = self.bias
            kwargs = {**kwargs, "attn_mask": bias}
        return func(*args, **kwargs)


class CountedAttention:
    """diffusers' processor of a joint attention, which torch's own attention underlies; `last_count` comes by the
    network's joint_attention_kwargs, so that a block that is computed again gets it again."""

    def __init__(self, processor: Any):
        self.processor = processor

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        last_count: int = 1,
    ) -> Any:
        joint = encoder_hidden_states is not None  # else image tokens alone: none stands for others
        with _LastCounts(last_count) if joint and last_count > 1 else nullcontext():
            return self.processor(attn, hidden_states, encoder_hidden_states, attention_mask)


def accept_last_count(network: Any) -> None:
    """Makes a diffusers network with joint attention take joint_attention_kwargs={"last_count": n}; again: nothing."""
    if not any(isinstance(p, CountedAttention) for p in network.attn_processors.values()):
        network.set_attn_processor({name: CountedAttention(p) for name, p in network.attn_processors.items()})
