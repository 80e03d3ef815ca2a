"""A registry is a folder: the component `foo` is the one class that `foo.py` exposes. Nothing is registered by hand.

A component is a class with a class attribute `Config`, a frozen `ComponentConfig` that sits beside it and declares
`name: Literal["foo"] = "foo"`. `package.module:Class` and `path/to/file.py:Class` are accepted wherever a name is, so
that users extend the toolkit without a fork.
"""

import hashlib
import importlib
import importlib.util
import pkgutil
import sys
import traceback
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, create_model
from pydantic_core import CoreSchema, core_schema

from rewards._config import ComponentConfig, RewardConfig, suggest
from rewards._errors import RegistryError

__all__ = ["ComponentConfig", "Registry", "RegistryError", "RewardConfig", "component_of", "load_object"]


GIVEN: dict[str, Any] = {}
"""{name: object} of what was given to this process as an object and has no path: functions in functions, lambdas."""


def path_of(value: Any) -> str:
    """A path at which `load_object` finds this very function, class or object again: its own, or `given:NAME`, which
    only this process knows."""
    name = getattr(value, "__qualname__", type(value).__name__)
    module = sys.modules.get(getattr(value, "__module__", ""))
    if module is not None and name.isidentifier() and getattr(module, name, None) is value:
        of_file = module.__name__.startswith("_file_")
        return f"{module.__file__ if of_file else module.__name__}:{name}"
    word = name.rpartition(".")[2]
    word = word if word.isidentifier() else "function"
    number = 1
    while GIVEN.get(key := word if number == 1 else f"{word}_{number}", value) is not value:
        number += 1
    GIVEN[key] = value
    return f"given:{key}"


def load_object(path: str) -> Any:
    """The object at `package.module:name` or `path/to/file.py:name`, both looked up from the working directory too."""
    location, _, attribute = path.partition(":")
    if location == "given":
        if attribute not in GIVEN:
            raise RegistryError(
                f'"{path}" was given to another process as an object, and has no path. Write it into a file and name '
                f"that: my_file.py:{attribute}."
            )
        return GIVEN[attribute]
    if not location or not attribute.isidentifier():
        raise RegistryError(f'"{path}" is not of the form package.module:name or path/to/file.py:name.')
    try:
        module = _load_file(location) if location.endswith(".py") else _import(location)
    except RegistryError:
        raise
    except ModuleNotFoundError as error:
        if error.name is None or not f"{location}.".startswith(f"{error.name}."):
            raise _failing(path, error) from error
        raise RegistryError(
            f'"{path}": there is no module {error.name}. Install it, run from the folder that holds it, '
            "or give the path of the file (my_file.py:name)."
        ) from None
    except Exception as error:  # somebody else's code: whatever it raises is theirs to correct
        raise _failing(path, error) from error
    if not hasattr(module, attribute):
        public = [name for name in vars(module) if not name.startswith("_")]
        raise RegistryError(f'"{path}": {location} has no "{attribute}".{suggest(attribute, public)}')
    return getattr(module, attribute)


def _failing(path: str, error: Exception) -> RegistryError:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{error.filename}:{error.lineno}" if isinstance(error, SyntaxError) else f"{frame.filename}:{frame.lineno}"
    return RegistryError(f'"{path}" fails when it is imported: {type(error).__name__}: {error} ({where}). Correct it.')


def _import(location: str) -> ModuleType:
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # last, so that a file lying about shadows nothing installed
    return importlib.import_module(location)


def _load_file(location: str) -> ModuleType:
    path = Path(location).expanduser().resolve()
    if not path.is_file():
        raise RegistryError(f'"{location}": there is no file {path}. Check the path.')
    name = f"_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None  # true of every .py file
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


FUNCTION = "python"
"""The component whose setting `function` is a plain function of the user's."""


class Registry:
    """The components of one kind, found in the folders of `packages`; `noun` is what messages call one of them.

    As the metadata of a field, `Annotated[SerializeAsAny[ComponentConfig], REGISTRY]`, it turns `{name: foo, ...}` (or
    just `foo`) into the config of the component `foo`, and its JSON schema is one branch a component.
    """

    def __init__(self, packages: Sequence[str], noun: str, base: type[ComponentConfig] = ComponentConfig):
        self.packages = tuple(packages)
        self.noun = noun
        self.base = base

    def __repr__(self) -> str:
        return f"Registry({self.packages}, {self.noun!r})"

    def modules(self) -> dict[str, str]:
        """{component name: module path}, sorted, from the folders' listings alone: no component is imported."""
        found: dict[str, str] = {}
        for package in self.packages:
            try:
                spec = importlib.util.find_spec(package)
            except ModuleNotFoundError:
                continue
            for module in pkgutil.iter_modules(spec.submodule_search_locations if spec else None):
                if spec and spec.submodule_search_locations and not module.name.startswith("_"):
                    found.setdefault(module.name, f"{package}.{module.name}")
        return dict(sorted(found.items()))

    def names(self) -> list[str]:
        """The names of all components, sorted; imports none of them."""
        return list(self.modules())

    def get(self, name: str) -> type:
        """The component class called `name`, or at a dotted path `module:Class`."""
        if ":" in name:
            return self._check(load_object(name), name)
        modules = self.modules()
        if name not in modules:
            raise RegistryError(
                f'there is no {self.noun} "{name}".{suggest(name, list(modules))} '
                f"Known: {', '.join(modules) or 'none'}; or write your own and give its path, my_module:MyClass."
            )
        return component_of(importlib.import_module(modules[name]))

    def _check(self, component: Any, path: str) -> type:
        config = getattr(component, "Config", None)
        if not isinstance(component, type) or not isinstance(config, type) or not issubclass(config, self.base):
            if callable(component) and not isinstance(component, type) and FUNCTION in self.modules():
                raise RegistryError(
                    f'"{path}" is a function, and so the setting of another {self.noun}: {{name: {FUNCTION}, function: '
                    f'"{path}"}} in a recipe, --reward mine={FUNCTION} --set mine.function={path} on a command line.'
                )
            raise RegistryError(
                f'"{path}" is no {self.noun}: it must be a class with a class attribute Config, a subclass of '
                f"{self.base.__module__}.{self.base.__name__} that declares its settings."
            )
        return component

    def config_class(self, name: str) -> type[ComponentConfig]:
        """The config class of a component; at a dotted path a subclass that knows the path as its `name`."""
        config = self.get(name).Config  # type: ignore[attr-defined]  # every component has one: _check, component_of
        return _named(config, name) if ":" in name else config

    def look_up(self, value: Any) -> ComponentConfig:
        """`{name: foo, ...}`, `foo`, or a ready config -> the validated config of the component it names."""
        if isinstance(value, ComponentConfig):
            name = getattr(value, "name", None)
            if isinstance(name, str) and type(value) is self.config_class(name):
                return value
            raise RegistryError(f"{type(value).__name__} is not the config of a {self.noun}.")
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, dict):
            raise RegistryError(f"{value!r} is no {self.noun}: give a name, or a mapping with the key name.")
        name = value.get("name")
        if not isinstance(name, str):
            said = "has no name" if name is None else f"is called {name!r}, which is not text"
            raise RegistryError(f"the {self.noun} {said}. Set name to one of: {', '.join(self.names())}.")
        return self.config_class(name).model_validate(value)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.look_up, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        names = self.names()
        named = [handler(self.config_class(name).__pydantic_core_schema__) for name in names]
        dotted = {"type": "object", "properties": {"name": {"type": "string", "pattern": ":"}}}
        branches = [{"allOf": [branch], "required": ["name"]} for branch in [*named, dotted]]
        return {"oneOf": [*branches, {"type": "string", "enum": names}, {"type": "string", "pattern": ":"}]}


def component_of(module: ModuleType) -> type:
    """The one component that a registry file exposes: a public class of its own with its own `Config`."""
    found = [
        value
        for name, value in vars(module).items()
        if isinstance(value, type)
        and not name.startswith("_")
        and value.__module__ == module.__name__
        and isinstance(value.__dict__.get("Config"), type)
    ]
    if len(found) != 1:
        raise TypeError(f"{module.__name__} must expose exactly one component, it has {[c.__name__ for c in found]}.")
    return found[0]


@cache
def _named(config: type[ComponentConfig], path: str) -> type[ComponentConfig]:
    name: Any = (Literal[path], path)
    return create_model(config.__name__, __base__=config, __module__=config.__module__, name=name)
