"""A recipe as it was written: YAML and `a.b=c` overrides -> a plain tree, and where each of its keys was said."""

import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from align.errors import UserError

KeyPath = tuple[int | str, ...]


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers and booleans: 1e-4 is a number; yes, no, on and off are text. A key said twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                problem = f"the key {key} is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_BOOL, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag not in (_BOOL, _FLOAT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"^[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?$|^[-+]?[0-9]+[eE][-+]?[0-9]+$"
        r"|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


class Source:
    """The tree of a recipe and where each key was said: `origin(path)` is "FILE:LINE" or "command line"."""

    def __init__(self, tree: dict[str, Any], name: str):
        self.tree = tree
        self.name = name
        self._origins: dict[KeyPath, str] = {}

    @classmethod
    def read(cls, path: Path) -> "Source":
        """From a YAML file."""
        name = _shown(path)
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except OSError as error:
            raise UserError(f"{name}: cannot be read ({error.strerror}). Check the path and its permissions.") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{name}: byte {error.start} is not UTF-8. Save the file as UTF-8.") from None
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            tree = loader.construct_document(node) if node is not None else {}
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            where = f"{name}:{mark.line + 1}" if mark else name
            raise UserError(f"{where}: not valid YAML: {error.problem}. Correct that line.") from None
        except yaml.YAMLError as error:
            raise UserError(f"{name}: not valid YAML: {str(error).splitlines()[0]}. Correct the file.") from None
        if not isinstance(tree, dict):
            raise UserError(f"{name}: a recipe is a mapping (model: ..., objective: ...), not {tree!r}. Correct it.")
        source = cls(tree, name)
        source._record(node, ())
        return source

    def _record(self, node: Any, path: KeyPath) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                self._origins[(*path, key.value)] = f"{self.name}:{key.start_mark.line + 1}"
                self._record(value, (*path, key.value))
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                self._origins[(*path, index)] = f"{self.name}:{value.start_mark.line + 1}"
                self._record(value, (*path, index))

    def origin(self, path: KeyPath) -> str:
        """Where the key at `path`, a key in its block, or the nearest block above it was said."""
        if path not in self._origins:
            inside = [origin for said, origin in self._origins.items() if path and said[: len(path)] == path]
            if inside:  # a block that an override has made
                return inside[0]
        for length in range(len(path), 0, -1):
            if path[:length] in self._origins:
                return self._origins[path[:length]]
        return self.name

    def override(self, overrides: Sequence[str] | Mapping[str, Any]) -> None:
        """Sets `a.b=c` (c is YAML), or {"a.b": c}; blocks that are not there yet are made."""
        if not isinstance(overrides, Mapping):
            overrides = dict(_parsed(text) for text in overrides)
        for dotted, value in overrides.items():
            *blocks, last = path = tuple(dotted.split("."))
            tree: dict[str, Any] = self.tree
            for key in blocks:
                inner: Any = tree.get(key)
                if inner is None:
                    inner = {}
                elif isinstance(inner, str):
                    inner = {"name": inner}  # the short form of a component
                elif not isinstance(inner, dict):
                    raise UserError(f"{dotted}={value}: {key} is {inner!r} and has no keys inside. Set {key} itself.")
                tree[key] = tree = inner  # from left to right
            tree[last] = value
            self._origins = {k: v for k, v in self._origins.items() if k[: len(path)] != path}
            self._origins[path] = "command line"


def _parsed(text: str) -> tuple[str, Any]:
    key, sign, value = text.partition("=")
    if not sign or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
        raise UserError(f'override "{text}": not of the form key.path=value. Write, for example, optim.lr=1e-4.')
    try:
        return key, yaml.load(value, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f'override "{text}": {value!r} is not valid YAML ({error}). Quote it.') from None


def _shown(path: Path) -> str:
    """Relative to the working directory where it lies below it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
