"""The registries of a recipe, one folder a kind of component, and how a component is built from its config."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, SerializeAsAny
from pydantic_core import CoreSchema, core_schema

from rewards._config import ComponentConfig, RewardConfig
from rewards._errors import RegistryError
from rewards._registry import Registry

__all__ = [
    "DATA",
    "HOOKS",
    "MODELS",
    "OBJECTIVES",
    "REWARDS",
    "ComponentConfig",
    "Labelled",
    "LabelledRewards",
    "Registry",
    "RegistryError",
    "RewardConfig",
    "build",
    "resolve_embedded",
]

MODELS = Registry(["align.models"], "model")
OBJECTIVES = Registry(["align.objectives"], "objective")
REWARDS = Registry(["rewards", "align.latent.rewards", "align.shapes.rewards"], "reward", base=RewardConfig)
DATA = Registry(["align.data"], "data source")
HOOKS = Registry(["align.hooks"], "hook")

EMBEDDED = "embedded:"


class Labelled:
    """Metadata of a field {label: component}: a label without a name is the name, no settings are the default ones."""

    def __init__(self, registry: Registry):
        self.registry = registry

    def named(self, value: Any) -> Any:
        """`value` with the name of each component filled in."""
        if not isinstance(value, Mapping):
            way_out = "Write it as `name: {its settings}`, or {} for none."
            raise ValueError(f"is {value!r}, must be a mapping of components. {way_out}")
        if isinstance(value.get("name"), str):
            raise ValueError(f"is one component, takes a key for each. Write `{value['name']}: {{...}}` inside it.")
        for label in value:
            if not str(label).isidentifier():
                raise ValueError(f'the label "{label}" is not a plain word. Write `my_word: {{name: "{label}"}}`.')
        return {label: self._one(label, settings) for label, settings in value.items()}

    def _one(self, label: Any, settings: Any) -> Any:
        if callable(settings) and self.registry.base is RewardConfig:  # a reward written where it is used
            plain = {"differentiable": bool(settings.differentiable)} if hasattr(settings, "differentiable") else {}
            return {"name": "python", "function": settings, **plain}
        return {"name": label, **(settings or {})} if isinstance(settings, Mapping | None) else settings

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.named, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        any_of_them = handler(schema)["additionalProperties"]
        branches = {
            name: handler(self.registry.config_class(name).__pydantic_core_schema__) for name in self.registry.names()
        }
        properties = {name: {"anyOf": [branch, any_of_them, {"type": "null"}]} for name, branch in branches.items()}
        return {"type": "object", "properties": properties, "additionalProperties": any_of_them}


LabelledRewards = Annotated[dict[str, Annotated[SerializeAsAny[RewardConfig], REWARDS]], Labelled(REWARDS)]
"""Rewards in a recipe, {label: reward}; the label names the reward's scores in metrics."""


C = TypeVar("C")


def build(registry: Registry, config: ComponentConfig, *args: Any, **kwargs: Any) -> Any:
    """The component that `config` names, as Class(config, *args, **kwargs), its embedded checkpoints resolved."""
    return registry.get(config.name)(resolve_embedded(config), *args, **kwargs)  # type: ignore[attr-defined]


def resolve_embedded(value: C) -> C:
    """`value` with every string `embedded:NAME` inside, at any depth, replaced by the folder of that checkpoint."""
    return _resolved(value)


def called(model: ComponentConfig, built: Any = None) -> str:
    """A model for people: its family and its checkpoint. Where the checkpoint says the family, only the model that was
    `built` knows it, and without that the checkpoint stands alone."""
    name, checkpoint = str(getattr(model, "name", "")), str(getattr(model, "checkpoint", ""))
    if getattr(model, "asks", False):
        name = str(getattr(getattr(built, "settings", None), "name", ""))
    return f"{name} {checkpoint}".strip()


def model_family(config: ComponentConfig) -> Any:
    """The class of the model that `config` builds: where it looks at its checkpoint to know, the class it finds."""
    found = MODELS.get(config.name)  # type: ignore[attr-defined]  # every component has one
    return found.family(resolve_embedded(config)) if hasattr(found, "family") else found


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
