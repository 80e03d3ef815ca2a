"""The settings of a config as Markdown: what a field takes, its default, and the sentence that stands below it."""

import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from align.registry import Labelled
from rewards._registry import Registry

WORDS = {bool: "`true`, `false`", int: "a whole number", float: "a number", str: "text"}
PLURAL = {int: "whole numbers", float: "numbers", str: "texts"}
BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
UNIONS = (Union, types.UnionType)


def cell(text: str) -> str:
    """`text` as one cell of a table, in which no sign outside of code is markup."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()).replace("|", "\\|"))
    plain = {"<": "&lt;", "*": "\\*"}
    return "".join(p if p.startswith("`") else re.sub("[<*]", lambda sign: plain[sign[0]], p) for p in parts)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows), ""]


def settings(config: type[BaseModel], key: str, leave_out: Sequence[str] = ()) -> list[str]:
    """A table of the fields of `config`, which stands at `key` of a recipe; then one for each block inside it."""
    rows, inner = [], []
    for name, field in config.model_fields.items():
        if name != "name" and name not in leave_out:
            rows.append((f"`{name}`", cell(takes(field)), default(field), cell(field.description or "")))
            inner += [(f"{key}.{name}", block) for block in blocks(field.annotation)]
    lines = table(("setting", "takes", "default", ""), rows) if rows else []
    for path, block in inner:
        lines += [f"`{path}`: {cell(block.__doc__ or '')}", "", *settings(block, path)]
    return lines


def shared(config: type[BaseModel], base: type[BaseModel]) -> list[str]:
    """The fields that `config` has from `base` as they are there."""
    same = ("description", "default", "annotation", "metadata")
    mine = config.model_fields
    return [
        name
        for name, field in base.model_fields.items()
        if name in mine and all(getattr(field, what) == getattr(mine[name], what) for what in same)
    ]


def blocks(annotation: Any) -> Iterator[type[BaseModel]]:
    """The configs inside a field that are no component of a registry."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in UNIONS:
        for inner in get_args(annotation):
            yield from blocks(inner)


def takes(field: FieldInfo) -> str:
    """In words, with bounds."""
    return _said(field.annotation, field.metadata)


def _said(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return _said(inside[0], annotation.__metadata__)
    if any(isinstance(one, Labelled) for one in metadata):
        return "components, each under its label"
    if any(isinstance(one, Registry) for one in metadata):
        return "a component"
    if origin in UNIONS:
        kinds = [_said(one, metadata) for one in inside if one is not type(None)]
        return " or ".join([*dict.fromkeys(kinds), *(["`null`"] if type(None) in inside else [])])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inside)
    if origin in (list, tuple):
        first = _plain(inside[0])
        many = "a list of" if origin is list or Ellipsis in inside else str(len(inside))
        return f"{many} {PLURAL.get(first) or _said(first)}"
    if origin is dict:
        return "a mapping"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "a block"
    bounds = [f"{sign} {getattr(one, at):g}" for one in metadata for at, sign in BOUNDS.items() if hasattr(one, at)]
    return ", ".join([WORDS[annotation], *bounds])


def _plain(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is typing.Annotated else annotation


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "as below"
    if isinstance(value, Mapping):
        value = {}
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"
