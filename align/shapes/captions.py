"""The language of the shapes world: what can be asked for, and how it is said.

A `Requirement` is what a caption demands; `say` and `parse` are inverse to each other. The six skills are those of
GenEval (Ghosh et al. 2023, arXiv 2310.11513): single, two, counting, colour, position, attribution.
"""

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from align.errors import UserError
from align.shapes.scene import COLOURS, SHAPES, Scene

SKILLS = ("single", "two", "counting", "colour", "position", "attribution")
NUMBERS = {"two": 2, "three": 3, "four": 4}
RELATIONS = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}  # each with its converse
SIZES = ("small", "large")


class NotUnderstood(UserError, ValueError):
    """A caption that is outside the language."""


@dataclass(frozen=True)
class Item:
    """`count` objects of one shape, where a colour or size of None is left open."""

    shape: str
    colour: str | None = None
    size: str | None = None
    count: int = 1


@dataclass(frozen=True)
class Requirement:
    """The items a picture must show, no more and no fewer, and the relation of the first to the second."""

    items: tuple[Item, ...]
    relation: str | None = None

    @property
    def skill(self) -> str:
        first, rest = self.items[0], self.items[1:]
        if self.relation:
            return "position"
        if rest:
            return "attribution" if all(i.colour for i in self.items) else "two"
        if first.count > 1:
            return "counting"
        return "colour" if first.colour else "single"

    @property
    def key(self) -> str:
        """The combination behind the words: equal for captions that say the same in another order."""
        words = [_phrase(i) for i in self.items]
        if self.relation in ("right of", "below"):
            return f"{words[1]} {RELATIONS[self.relation]} {words[0]}"
        if self.relation:
            return f"{words[0]} {self.relation} {words[1]}"
        return " and ".join(sorted(words))


def _phrase(item: Item) -> str:
    number = "a" if item.count == 1 else next(w for w, n in NUMBERS.items() if n == item.count)
    noun = item.shape if item.count == 1 else item.shape + "s"
    return " ".join(w for w in (number, item.size, item.colour, noun) if w)


def say(requirement: Requirement) -> str:
    """The caption of a requirement, e.g. "a red circle left of a square"."""
    words = [_phrase(i) for i in requirement.items]
    return f" {requirement.relation or 'and'} ".join(words)


_ITEM = re.compile(
    rf"(?P<number>a|{'|'.join(NUMBERS)})(?: (?P<size>{'|'.join(SIZES)}))?(?: (?P<colour>{'|'.join(COLOURS)}))?"
    rf" (?P<shape>{'|'.join(SHAPES)})(?P<plural>s?)"
)
_JOIN = re.compile(rf" (and|{'|'.join(RELATIONS)}) ")


def parse(caption: str) -> Requirement:
    """The requirement of a caption. Raises NotUnderstood, naming the words, outside the grammar."""
    parts = _JOIN.split(" ".join(caption.lower().strip().rstrip(".").split()))
    items = []
    for text in parts[::2]:
        match = _ITEM.fullmatch(text)
        if match is None or bool(match["plural"]) != (match["number"] != "a"):
            raise NotUnderstood(
                f"caption {caption!r}: {text!r} is not understood. Say for example 'a red circle', 'three squares' "
                f"or 'a star left of a circle', with shapes {', '.join(SHAPES)} and colours {', '.join(COLOURS)}."
            )
        items.append(Item(match["shape"], match["colour"], match["size"], NUMBERS.get(match["number"], 1)))
    if len(items) > 2 or (len(items) == 2 and max(i.count for i in items) > 1):
        raise NotUnderstood(f"caption {caption!r}: at most two phrases, and a number only in a phrase alone.")
    return Requirement(tuple(items), parts[1] if len(parts) > 1 and parts[1] != "and" else None)


def unreadable(captions: Iterable[str]) -> Iterator[str]:
    """What is wrong with each of these captions that is outside the grammar."""
    for caption in captions:
        try:
            parse(caption)
        except NotUnderstood as error:
            yield str(error)


def requirements(skill: str) -> Iterator[Requirement]:
    """Everything that can be asked for within a skill, in a fixed order, both orders of words included."""
    if skill == "single":
        yield from (Requirement((Item(s, None, z),)) for s in SHAPES for z in (None, *SIZES))
    elif skill == "colour":
        yield from (Requirement((Item(s, c, z),)) for s in SHAPES for c in COLOURS for z in (None, *SIZES))
    elif skill == "counting":
        yield from (
            Requirement((Item(s, c, None, n),)) for s in SHAPES for c in (None, *COLOURS) for n in NUMBERS.values()
        )
    elif skill == "two":
        for a, b in itertools.permutations(SHAPES, 2):
            yield from (
                Requirement((Item(a, None, za), Item(b, None, zb)))
                for za in (None, *SIZES)
                for zb in (None, *SIZES)
                if za is None or zb is None
            )
    elif skill == "position":
        for a, b in itertools.permutations(SHAPES, 2):
            yield from (Requirement((Item(a, c), Item(b)), r) for c in (None, *COLOURS) for r in RELATIONS)
            yield from (Requirement((Item(a), Item(b, c)), r) for c in COLOURS for r in RELATIONS)
    elif skill == "attribution":
        for a, b in itertools.product(SHAPES, repeat=2):
            yield from (Requirement((Item(a, ca), Item(b, cb))) for ca, cb in itertools.permutations(COLOURS, 2))
    else:
        raise ValueError(f"skill {skill!r} is unknown. Choose one of {', '.join(SKILLS)}.")


def describe(scene: Scene) -> str:
    """A caption that is true of a scene and names its colours where the grammar can.

    Raises ValueError for scenes the grammar has no sentence for (none, or three and more objects that differ).
    """
    items = [Item(o.shape, o.colour) for o in scene.objects]
    if len(items) == 1:
        return say(Requirement((replace(items[0], size=scene.objects[0].size),)))
    if items and all(i == items[0] for i in items) and len(items) in NUMBERS.values():
        return say(Requirement((replace(items[0], count=len(items)),)))
    if len(items) == 2:
        if items[0].colour != items[1].colour:
            return say(Requirement((items[0], items[1])))
        a, b = scene.objects
        dx, dy = a.x - b.x, a.y - b.y
        relation = ("left of" if dx < 0 else "right of") if abs(dx) > abs(dy) else ("above" if dy < 0 else "below")
        return say(Requirement((items[0], Item(items[1].shape)), relation))
    raise ValueError(f"no caption for {len(items)} objects that differ: the grammar joins at most two phrases.")


def altered(requirement: Requirement, choice: int) -> Requirement:
    """The requirement with one attribute changed: `choice` picks which of `alterations`, modulo their number."""
    options = list(alterations(requirement))
    return options[choice % len(options)]


def alterations(requirement: Requirement) -> Iterator[Requirement]:
    """Every requirement that differs in one attribute and that no picture can meet together with this one."""
    r = requirement
    if r.relation:
        yield replace(r, relation=RELATIONS[r.relation])
    for k, item in enumerate(r.items):
        other = [i for j, i in enumerate(r.items) if j != k]
        changed = [replace(item, shape=s) for s in SHAPES if s != item.shape and all(s != o.shape for o in other)]
        if item.colour:
            changed += [replace(item, colour=c) for c in COLOURS if c != item.colour]
        if item.size:
            changed.append(replace(item, size=SIZES[1 - SIZES.index(item.size)]))
        if item.count > 1:
            changed += [replace(item, count=n) for n in NUMBERS.values() if n != item.count]
        for new in changed:
            candidate = replace(r, items=tuple(new if j == k else i for j, i in enumerate(r.items)))
            if candidate.key != r.key and candidate.skill == r.skill:
                yield candidate
