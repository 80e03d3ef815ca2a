"""A recipe as it was written: YAML and `a.b=c` overrides -> a plain tree, and where each of its keys was said."""

import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from align.errors import UserError
from align.files.texts import Unreadable, decode

KeyPath = tuple[int | str, ...]
OTHERS_SAY = {
    "gradient_accumulation_steps": "train.micro_batch_size, the rows of one pass (train.batch_size / steps)",
    "train_batch_size": "train.batch_size",
    "max_train_steps": "train.num_updates",
    "num_epochs": "train.num_updates",
    "learning_rate": "optim.lr",
    "lr_scheduler": "optim.schedule",
    "num_inference_steps": "sampling.num_steps",
    "resolution": "sampling.image_size",
    "gradient_checkpointing": "model.checkpoint_blocks",
    "output_dir": "output",
    "report_to": "hooks.metrics.trackers",
    "lr_warmup_steps": "optim.num_warmup",
    "checkpointing_steps": "train.checkpoint_every",
    "cfg": "sampling.guidance_scale",
    "cfg_scale": "sampling.guidance_scale",
    "pretrained_model_name_or_path": "model.checkpoint",
}
"""What other trainers call our keys."""


MOST_DIGITS, MOST_VALUES = 400, 100_000
"""Of a number, and of a whole recipe: more is a mistake or an attack."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers and booleans: 1e-4 is a number; yes, no, on and off are text. A key said twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key: Any = self.construct_object(key_node, deep=True)
            if key in seen:
                problem = f"the key {key} is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """010 is ten."""
        text = node.value.lower()
        if len(text) > MOST_DIGITS:
            raise yaml.constructor.ConstructorError(None, None, "a number of so many digits", node.start_mark)
        return int(text, 16 if "0x" in text else 8 if "0o" in text else 10)


_BOOL, _FLOAT, _INT, _MERGE, _NULL = (f"tag:yaml.org,2002:{kind}" for kind in ("bool", "float", "int", "merge", "null"))
_Loader.yaml_implicit_resolvers = {  # no dates, no 1:30 in base 60, no binary
    first: [(tag, regexp) for tag, regexp in resolvers if tag in (_MERGE, _NULL)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor(_INT, _Loader.construct_yaml_int)
_Loader.add_implicit_resolver(_INT, re.compile(r"^[-+]?([0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789"))
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
        self._texts: dict[KeyPath, str] = {}
        """How values were written on the command line, which may have been read as numbers, true, false or null."""

    @classmethod
    def read(cls, path: Path) -> "Source":
        """From a YAML file."""
        name = _shown(path)
        try:
            text = decode(path.read_bytes(), name)
        except OSError as error:
            raise UserError(f"{name}: cannot be read ({error.strerror}). Check the path and its permissions.") from None
        except Unreadable as error:
            raise UserError(str(error)) from None
        try:
            tree, node = _composed(text)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            where = f"{name}:{mark.line + 1}" if mark else name
            raise UserError(f"{where}: not valid YAML: {error.problem}. Correct that line.") from None
        except yaml.YAMLError as error:
            raise UserError(f"{name}: not valid YAML: {str(error).splitlines()[0]}. Correct the file.") from None
        if not isinstance(tree, dict):
            shown = f"{repr(tree)[:80]}"
            raise UserError(f"{name}: a recipe is a mapping (model: ..., objective: ...), not {shown}. Correct it.")
        source = cls(tree, name)
        source._record(node, (), lambda mark: f"{name}:{mark.line + 1}")
        source._texts.clear()  # who writes a file sees what is a number in it
        return source

    def _record(self, node: Any, path: KeyPath, origin: Callable[[Any], str]) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                self._origins[(*path, key.value)] = origin(key.start_mark)
                self._record(value, (*path, key.value), origin)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                self._origins[(*path, index)] = origin(value.start_mark)
                self._record(value, (*path, index), origin)
        elif isinstance(node, yaml.ScalarNode) and node.style is None:
            self._texts[path] = node.value

    def respell(self, paths: Iterable[KeyPath]) -> bool:
        """Puts back how the values at `paths` were written, where that is not what they were read as: a folder called
        007 is text where text is wanted. Whether anything changed."""
        changed = False
        for path in paths:
            if path not in self._texts:
                continue
            tree: Any = self.tree
            for key in path[:-1]:
                tree = tree[key]
            changed |= tree[path[-1]] != (text := self._texts.pop(path)) or not isinstance(tree[path[-1]], str)
            tree[path[-1]] = text
        return changed

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
        """Sets `a.b=c`, or {"a.b": c}; blocks that are not there yet are made. c is YAML where it begins as a list, a
        mapping or a quoted text does, and otherwise plain: a number, true, false, null, or text to its end."""
        nodes: dict[str, Any] = {}
        if not isinstance(overrides, Mapping):
            parsed = {key: (value, node) for key, value, node in map(_parsed, overrides)}
            overrides, nodes = ({key: pair[i] for key, pair in parsed.items()} for i in (0, 1))
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
            for known in (self._origins, self._texts):
                for said in [said for said in known if said[: len(path)] == path]:
                    del known[said]
            self._origins[path] = "command line"
            self._record(nodes.get(dotted), path, lambda mark: "command line")


def _parsed(text: str) -> tuple[str, Any, yaml.Node | None]:
    key, sign, value = text.partition("=")
    if not sign or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
        raise UserError(f'override "{text}": not of the form key.path=value. Write, for example, optim.lr=1e-4.')
    value = value.strip()
    quoted = len(value) > 1 and value[0] in "\"'" and value[-1] == value[0]
    if value[:1] in ("[", "{") or quoted:
        try:
            return key, *_composed(value)
        except yaml.YAMLError as error:
            if not quoted:
                said = str(error).replace("\n", " ")
                raise UserError(f'override "{text}": {value!r} is not valid YAML ({said}). Quote it.') from None
    loader = _Loader("")
    plain = yaml.ScalarNode(loader.resolve(yaml.ScalarNode, value, (True, False)), value)
    try:
        return key, loader.construct_document(plain), plain
    except yaml.YAMLError as error:
        raise UserError(f"override {key}: {getattr(error, 'problem', error)}. Correct it.") from None


def _composed(text: str) -> tuple[Any, yaml.Node | None]:
    """(the value, its node) of a YAML text; a YAMLError also for what is nested too deep or grows by its aliases."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return {}, None
        _size(node, {})
        return loader.construct_document(node), node
    except RecursionError:
        raise yaml.YAMLError("it is nested too deep") from None
    except ValueError as error:
        raise yaml.YAMLError(str(error)) from None


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for, every alias written out."""

    def refuse(why: str, where: yaml.Node = node) -> NoReturn:
        raise yaml.constructor.ConstructorError(None, None, why, where.start_mark)

    if (before := known.get(id(node))) is not None:
        return before or refuse("an alias stands inside what it names")
    known[id(node)] = 0
    parts: list[yaml.Node] = node.value if isinstance(node, yaml.SequenceNode) else []
    if isinstance(node, yaml.MappingNode):
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                refuse("a key is a list or a mapping", key)
        parts = [value for _, value in node.value]
    known[id(node)] = size = 1 + sum(_size(part, known) for part in parts)
    return size if size <= MOST_VALUES else refuse(f"its aliases stand for more than {MOST_VALUES} values")


def _shown(path: Path) -> str:
    """Relative to the working directory where it lies below it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
