"""Every learned reward at its published size with random weights: no checkpoint is asked for, time is the same.

reward = build("pickscore", dtype="float32", device="cpu")
"""

from typing import Any

import torch

from align import registry
from rewards import Reward
from rewards._unloaded import REAL, without_checkpoints

HOLDERS = ("clip", "siglip")
"""Attributes of a reward that may hold its preprocessing, where the reward does not itself."""


def build(name: str, *, dtype: str = "float32", device: str = "cpu") -> Reward:
    """The reward, on the device; a reference image is read already."""
    kind: Any = registry.REWARDS.config_class(name)
    settings = dict(REAL[name].settings)
    if "dtype" in kind.model_fields:
        settings["dtype"] = dtype
    from transformers.initialization import no_init_weights

    with without_checkpoints(REAL[name]), no_init_weights():
        reward: Any = registry.build(registry.REWARDS, kind(**settings))
        fill(reward)
        if hasattr(reward, "references"):
            reward.references.image("", None, torch.device("cpu"))
    return reward.to(device)


@torch.no_grad()
def fill(network: torch.nn.Module) -> None:
    """Random values for all parameters, the same million over and over: drawing a billion takes longer than a forward
    pass through them."""
    block = 0.02 * torch.randn(2**20, generator=torch.Generator().manual_seed(0))
    for parameter in network.parameters():
        count = parameter.numel()
        parameter.copy_(block.repeat(-(-count // len(block)))[:count].view_as(parameter))


def holder(reward: Any) -> Any:
    """The part of a reward whose attribute `preprocess` turns images into what its network takes; None without one."""
    parts = [reward, *(getattr(reward, name) for name in HOLDERS if hasattr(reward, name))]
    return next((part for part in parts if getattr(part, "preprocess", None) is not None), None)
