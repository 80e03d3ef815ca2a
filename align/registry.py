"""The registries of a recipe, one folder a kind of component, and how a component is built from its config."""

from typing import Any, TypeVar

from rewards._registry import ComponentConfig, Registry, RegistryError, RewardConfig

__all__ = [
    "DATA",
    "HOOKS",
    "MODELS",
    "OBJECTIVES",
    "REWARDS",
    "ComponentConfig",
    "Registry",
    "RegistryError",
    "RewardConfig",
    "build",
    "resolve_embedded",
]

MODELS = Registry(["align.models"], "model")
OBJECTIVES = Registry(["align.objectives"], "objective")
REWARDS = Registry(["rewards", "align.shapes.rewards"], "reward", base=RewardConfig)
DATA = Registry(["align.data"], "data source")
HOOKS = Registry(["align.hooks"], "hook")

EMBEDDED = "embedded:"

C = TypeVar("C")


def build(registry: Registry, config: ComponentConfig, *args: Any) -> Any:
    """The component that `config` names, as Class(config, *args), with its embedded checkpoints resolved."""
    return registry.get(config.name)(resolve_embedded(config), *args)  # type: ignore[attr-defined]


def resolve_embedded(value: C) -> C:
    """`value` with every string `embedded:NAME` inside, at any depth, replaced by the folder of that checkpoint."""
    return _resolved(value)


def _resolved(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(EMBEDDED):
        from align.shapes.embedded import resolve

        return str(resolve(value))
    if isinstance(value, ComponentConfig):
        fields = {name: getattr(value, name) for name in type(value).model_fields}
        changed = {name: new for name, old in fields.items() if (new := _resolved(old)) is not old}
        return value.model_copy(update=changed) if changed else value
    if isinstance(value, dict):
        return {key: _resolved(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_resolved(item) for item in value)
    return value
