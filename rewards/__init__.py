"""Rewards: images in [0, 1] and their prompts -> one score an image, higher is better. One reward a file.

Names are resolved on first use, so that listing the folder imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewards._base import Reward
    from rewards._combine import CombineConfig
    from rewards._composite import Composite
    from rewards._config import ComponentConfig, RewardConfig
    from rewards._errors import RewardError
    from rewards._registry import Registry, load_object

_HOME = {
    "ComponentConfig": "_config",
    "RewardConfig": "_config",
    "Registry": "_registry",
    "load_object": "_registry",
    "Reward": "_base",
    "RewardError": "_errors",
    "Composite": "_composite",
    "CombineConfig": "_combine",
}

__all__ = [
    "CombineConfig",
    "ComponentConfig",
    "Composite",
    "Registry",
    "Reward",
    "RewardConfig",
    "RewardError",
    "load_object",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rewards' has no attribute {name!r}")
    return getattr(import_module(f"rewards.{_HOME[name]}"), name)
