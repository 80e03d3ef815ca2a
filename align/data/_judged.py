"""From a table's rows to pairs: which of two is preferred, by a winner, by two labels, or by ranks."""

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any, NamedTuple

from align.data._columns import Columns, cell, form
from align.data._pictures import Picture
from align.errors import UserError


class Pair(NamedTuple):
    """One comparison; in a tie the order of the two says nothing."""

    prompt: str
    winner: Picture
    loser: Picture
    tie: bool = False

    @property
    def pictures(self) -> tuple[Picture, ...]:
        return self.winner, self.loser


class Read(NamedTuple):
    """A row of a table."""

    where: str
    cells: Mapping[str, Any]
    """Its columns but the pictures."""
    pictures: Mapping[str, Picture | None]
    """{our name: where the picture is}."""


Found = Iterator[Pair | str]
"""Pairs, and in place of a row that is none the reason."""


def judged(rows: Iterable[Read], columns: Columns) -> Found:
    """The pairs of all rows."""
    asked = form("pairs", columns) or ()
    if "rank" in asked:
        yield from _ranked(rows, columns)
        return
    for row in rows:
        if _number(cell(row.cells, columns.get("judged", "")), row.where) == 0:
            yield "not judged"
            continue
        labels: tuple[Any, Any] = (1, 0)
        sides = row.pictures.get("winner"), row.pictures.get("loser")
        if "label_0" in asked:
            labels = cell(row.cells, columns["label_0"]), cell(row.cells, columns["label_1"])
            sides = row.pictures.get("image_0"), row.pictures.get("image_1")
        yield _pair(cell(row.cells, columns["prompt"]), sides, labels, row.where)


def _pair(prompt: Any, sides: tuple[Picture | None, Picture | None], labels: tuple[Any, Any], where: str) -> Pair | str:
    """The pair of two labels, the larger preferred; a reason where a label, a picture or the prompt is missing."""
    first, second = (_number(label, where) for label in labels)
    if first is None or second is None:
        return "not judged"
    if not isinstance(prompt, str) or not prompt.strip():
        return "without a prompt"
    if sides[0] is None or sides[1] is None:
        return "without a picture"
    winner, loser = sides if first >= second else sides[::-1]
    assert winner is not None and loser is not None
    return Pair(prompt, winner, loser, tie=first == second)


def _ranked(rows: Iterable[Read], columns: Columns) -> Found:
    """Every two images of a group; the lower rank is preferred. A group's rows may lie anywhere in the table."""
    groups: dict[Any, list[tuple[Any, Picture | None, Any, str]]] = {}
    for row in rows:
        prompt = cell(row.cells, columns["prompt"])
        key = cell(row.cells, columns["group"]) if "group" in columns else prompt
        groups.setdefault(key, []).append(
            (prompt, row.pictures.get("image"), cell(row.cells, columns["rank"]), row.where)
        )
    for group in groups.values():
        for (prompt, one, first, where), (_, other, second, _) in combinations(group, 2):
            a, b = _number(first, where), _number(second, where)
            yield _pair(prompt, (one, other), (None, None) if a is None or b is None else (-a, -b), where)


def _number(label: Any, where: str) -> float | None:
    """A label as a number; None for a missing one, which is null or NaN."""
    if label is None or label == "":
        return None
    try:
        number = float(label)
    except (TypeError, ValueError):
        raise UserError(f"{where}: the label {label!r} is no number.") from None
    return None if math.isnan(number) else number
