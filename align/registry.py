"""The registries of a recipe: one folder, one kind of component."""

from rewards._registry import ComponentConfig, Registry, RegistryError, RewardConfig

__all__ = ["DATA", "HOOKS", "MODELS", "OBJECTIVES", "REWARDS", "ComponentConfig", "Registry", "RegistryError"]

MODELS = Registry(["align.models"], "model")
OBJECTIVES = Registry(["align.objectives"], "objective")
REWARDS = Registry(["rewards", "align.shapes.rewards"], "reward", base=RewardConfig)
DATA = Registry(["align.data"], "data source")
HOOKS = Registry(["align.hooks"], "hook")
