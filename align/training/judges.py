"""Rewards of the user's own that only watch or judge: tried before a model is loaded, not after the training."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from align.data.prompts import load_prompts
from align.registry import REWARDS, RewardConfig, build
from rewards._base import Reward


def try_all(recipe: Any, device: torch.device) -> None:
    """Those of the report and of each hook that training does not ask."""
    places = {"evaluate": recipe.evaluate, **{f"hooks.{label}": hook for label, hook in recipe.hooks.items()}}
    for place, config in places.items():
        found = {k: v for k, v in (getattr(config, "rewards", None) or {}).items() if k not in recipe.rewards}
        if any(own(reward) for reward in found.values()):
            try_out(found, load_prompts(config.prompts, count=config.num_prompts, key=f"{place}.prompts"), device)


def try_out(rewards: Mapping[str, RewardConfig], prompts: Sequence[str], device: torch.device) -> None:
    """Raises RewardError where one that is somebody's own breaks the contract; of its gradient nothing is asked."""
    for label, config in rewards.items():
        if own(config):
            reward = build(REWARDS, config).to(device)
            reward.differentiable = False
            reward.try_out(label, prompts, device)


def own(config: Any) -> bool:
    """Whether it is somebody's own, and so may break the contract."""
    return REWARDS.get(config.name).try_out is not Reward.try_out
