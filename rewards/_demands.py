"""What a prompt demands of a picture, as GenEval writes it down: objects, how many, of which colour, and where.

    {"tag": "position", "prompt": "a photo of a dog right of a bench",
     "include": [{"class": "bench", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}],
     "exclude": [{"class": "bench", "count": 2}]}

`include` asks for at least so many, `exclude` forbids as many or more; the number in a position is that of the clause
of `include` it relates to (Ghosh et al. 2023, arXiv 2310.11513).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards._errors import RewardError

RELATIONS = ("left of", "right of", "above", "below")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
KEYS = ("class", "count", "color", "position")


@dataclass(frozen=True)
class Clause:
    """`count` objects called `name`, perhaps of a colour, perhaps in a relation to those of another clause."""

    name: str
    count: int = 1
    colour: str | None = None
    relation: str | None = None
    target: int = 0
    """The clause of `include` that the relation points to."""


@dataclass(frozen=True)
class Demands:
    """All that one prompt asks for."""

    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...] = ()
    """Of each: this many or more are too many."""
    tag: str = ""

    @property
    def names(self) -> list[str]:
        """Every kind of object, each once."""
        return list(dict.fromkeys(clause.name for clause in (*self.include, *self.exclude)))

    @property
    def coloured(self) -> bool:
        return any(clause.colour for clause in self.include)


def from_metadata(record: Any, where: str) -> Demands:
    """One record of GenEval's form; `where` is what the error calls it."""
    if not isinstance(record, Mapping) or not isinstance(record.get("include"), list) or not record["include"]:
        raise RewardError(f'{where} has no "include". Write {{"include": [{{"class": "dog", "count": 1}}]}}.')
    include = tuple(_clause(one, k, f"{where}, include {k + 1}") for k, one in enumerate(record["include"]))
    if not isinstance(record.get("exclude", []), list):
        raise RewardError(f'{where}: "exclude" is no list. Write it like "include".')
    exclude = tuple(_clause(one, 0, f"{where}, exclude {k + 1}") for k, one in enumerate(record.get("exclude", [])))
    return Demands(include, exclude, str(record.get("tag", "")))


def _clause(given: Any, place: int, where: str) -> Clause:
    name = given.get("class") if isinstance(given, Mapping) else None
    if not isinstance(given, Mapping) or not isinstance(name, str) or not name.strip():
        raise RewardError(f'{where} is {given!r}: it must be {{"class": "dog", "count": 1}}.')
    if extra := [key for key in given if key not in KEYS]:
        raise RewardError(f"{where}: the key {extra[0]} is unknown. Known here: {', '.join(KEYS)}.")
    count, colour, position = given.get("count", 1), given.get("color"), given.get("position")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise RewardError(f"{where}: count is {count!r}. Set it to a whole number of at least 1.")
    if colour is not None and colour not in COLOURS:
        raise RewardError(f"{where}: color is {colour!r}. Set it to one of {', '.join(COLOURS)}.")
    if position is None:
        return Clause(name.strip(), count, colour)
    said = (
        f"{where}: position is {position!r}. Write one of {', '.join(RELATIONS)} and the number of an earlier clause."
    )
    if not isinstance(position, list) or len(position) != 2 or position[0] not in RELATIONS:
        raise RewardError(said)
    if not isinstance(position[1], int) or not 0 <= position[1] < place:
        raise RewardError(said)
    return Clause(name.strip(), count, colour, position[0], position[1])


def read(path: str) -> dict[str, Demands]:
    """{prompt: its demands} of a .jsonl file of GenEval's form."""
    file = Path(path).expanduser()
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise RewardError(f"{path}: cannot be read ({error.strerror}). Check the path.") from None
    except UnicodeDecodeError:
        raise RewardError(f"{path}: is not UTF-8. Save the file as UTF-8.") from None
    found: dict[str, Demands] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise RewardError(f"{where}: is not JSON ({error}). Write one object a line.") from None
        demands = from_metadata(record, where)
        prompt = record.get("prompt")
        if not isinstance(prompt, str) or not prompt.strip():
            raise RewardError(f'{where} has no text under "prompt". Give every line one.')
        if found.setdefault(prompt.strip(), demands) != demands:
            raise RewardError(f"{where}: {prompt!r} is there already and asks for something else. Remove one.")
    if not found:
        raise RewardError(f"{path}: is empty. Give at least one line.")
    return found
