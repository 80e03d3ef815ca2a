"""A parser of simple captions: what GenEval's prompts say, and nothing that it would have to guess.

    [a photo of] PHRASE [and PHRASE]...        PHRASE = a | an | one ... ten, [colour], noun of one to three words
    [a photo of] PHRASE RELATION PHRASE        RELATION = [to the | on the] left of | right of, above, below

Whatever else a caption says ("in a storm", "riding", "very old") is not understood, and is an error that names it.
"""

import re
from collections.abc import Sequence

from rewards._demands import COLOURS, Clause, Demands
from rewards._errors import RewardError

NUMBERS = {word: n for n, word in enumerate("one two three four five six seven eight nine ten".split(), 1)}
NUMBERS |= {"a": 1, "an": 1}
NO_NOUN = set(
    "in on with at of by to from into onto over under near beside behind between through against inside outside "
    "the some many several no not without and or but while that which who is are was has have its their his her".split()
)
"""Words that no noun is made of: a phrase with one says more than a count and a colour."""
_IRREGULAR = {
    "people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse", "geese": "goose",
    "feet": "foot", "teeth": "tooth", "knives": "knife", "wolves": "wolf", "leaves": "leaf", "loaves": "loaf",
    "scarves": "scarf", "shelves": "shelf", "sheep": "sheep", "fish": "fish", "deer": "deer", "buses": "bus",
    "skis": "skis", "scissors": "scissors", "glasses": "glasses",
}  # fmt: skip
_START = re.compile(r"^(?:(?:a|an|the) )?(?:photo|picture|image|photograph|drawing|painting) of ")
_RELATION = re.compile(r" (?:to the |on the )?(left of|right of|above|below) ")


def parse(caption: str) -> Demands:
    """The demands of a caption; exactly as many of everything as it names.

    Raises:
        RewardError: words that are not understood.
    """
    text = _START.sub("", " ".join(caption.lower().strip().rstrip(".").split()))
    sides = _RELATION.split(text)
    if len(sides) == 3:
        subject, target = _phrase(sides[0], caption), _phrase(sides[2], caption)
        subject = Clause(subject.name, subject.count, subject.colour, sides[1], 0)
        include = (target, subject)
    elif len(sides) > 3:
        raise _unknown(caption, text)
    else:
        include = tuple(_phrase(part, caption) for part in re.split(r", and |, | and ", text))
    asked: dict[str, int] = {}
    for clause in include:
        asked[clause.name] = asked.get(clause.name, 0) + clause.count
    exclude = tuple(Clause(name, count + 1) for name, count in asked.items())
    return Demands(include, exclude, _tag(include))


def _phrase(text: str, caption: str) -> Clause:
    words = text.split()
    if len(words) < 2 or words[0] not in NUMBERS:
        raise _unknown(caption, text)
    count, rest = NUMBERS[words[0]], words[1:]
    colour = rest.pop(0) if rest[0] in COLOURS and len(rest) > 1 else None
    if not 1 <= len(rest) <= 3 or not all(re.fullmatch(r"[a-z][a-z'-]*", w) and w not in NO_NOUN for w in rest):
        raise _unknown(caption, text)
    if count > 1:
        rest[-1] = singular(rest[-1])
    return Clause(" ".join(rest), count, colour)


def singular(noun: str) -> str:
    """ "apples" -> "apple", by the common rules of English."""
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    if re.search(r"[^aeiou]ies$", noun):
        return noun[:-3] + "y"
    if re.search(r"(?:ch|sh|x|ss|zz|to)es$", noun):
        return noun[:-2]
    return noun[:-1] if re.search(r"[^s]s$", noun) else noun


def _tag(include: Sequence[Clause]) -> str:
    """GenEval's name of the task."""
    if any(clause.relation for clause in include):
        return "position"
    if len(include) > 1:
        return "color_attr" if all(clause.colour for clause in include) else "two_object"
    if include[0].count > 1:
        return "counting"
    return "colors" if include[0].colour else "single_object"


def _unknown(caption: str, text: str) -> RewardError:
    return RewardError(
        f"the prompt {caption!r}: {text!r} is not understood. Say for example 'a photo of two red apples' or 'a dog "
        "left of a bench', or give its demands in a file (detector.demands)."
    )
