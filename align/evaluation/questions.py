"""What a benchmark asks of each image: a list of questions a prompt, each with the answer that is right and a skill.

    {"prompt": "a green bag and a pig", "questions": [{"question": "Is the bag green?", "skill": "attribute"}]}

`answer` is Yes where nothing else is said; `parents` are the places of questions, from 1, without whose yes this one
cannot be met. The rule says how answers a in [0, 1] become the score of an image:

    mean       of all a
    geometric  their geometric mean     (GenEval 2's Soft-TIFA: Kamath et al. 2025, arXiv 2512.16853)
    graph      of a > 1/2, 0 where a parent is not met          (DPG-Bench: Hu et al. 2024, arXiv 2403.05135)
    product    of all a                                         (T2I-CompBench: Huang et al. 2023, arXiv 2307.06350)
    tasks      the one a of each image; over all, the mean of the skills' means     (GenEval: Ghosh et al. 2023)
    points     of a > 1/2; over all, and in each skill, every question counts alike (UniGenBench++: arXiv 2510.18701)
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from align.errors import UserError
from align.evaluation.benchmarks import BENCHMARKS, repaired
from align.evaluation.benchmarks_fetch import fetch
from align.files.texts import Unreadable, json_lines, table

Rule = Literal["mean", "geometric", "graph", "product", "tasks", "points"]


class Question(NamedTuple):
    """One question about an image of a prompt."""

    text: str
    answer: str = "Yes"
    skill: str = ""
    parents: tuple[int, ...] = ()
    """Places in the prompt's list, from 0."""


class Asked(NamedTuple):
    """A prompt and what is asked of its images."""

    prompt: str
    category: str
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Examination:
    """A benchmark with its questions."""

    name: str
    rule: Rule
    judge: dict[str, Any]
    """The reward that answers, where none is named."""
    asked: list[Asked]


class _Wrong(Exception):
    """How a list of questions differs from its form."""


def examination(source: str) -> Examination:
    """The benchmark of `--benchmark NAME`, `NAME=FILE_OR_FOLDER`, or FILE in the form above."""
    name, _, copy = source.partition("=")
    if name.startswith("shapes:"):
        from align.evaluation.prompts import load

        items = load(name, key="--benchmark ")
        asked = [Asked(i.prompt, i.category, (Question(i.prompt, "Yes", i.category),)) for i in items]
        return Examination(name, "tasks", {"name": "judge"}, asked)
    if name not in KNOWN:
        path = Path(source).expanduser()
        if not path.is_file():
            known = ", ".join([*KNOWN, "shapes:report"])
            raise UserError(f"--benchmark {source}: is neither a file nor one of {known}. Check the name.")
        text = _text(path, source)
        return Examination(source, "mean", {"name": "vqascore"}, _all(source, [_own(text)]))
    kind = KNOWN[name]
    home = BENCHMARKS[kind.home]
    files = [file for file, category in home.files.items() if not kind.only or category in kind.only]
    found, where = [], ""
    for file in files:
        text, where = fetch(name, file, copy or home.home, alone=len(home.files) == 1, option="--benchmark")
        found.append(_read(name, where, lambda text=text, file=file: kind.read(text, home.files[file])))
    judge = dict(kind.judge)
    if judge["name"] == "detector":
        if not Path(where).is_file():
            raise UserError(
                f"--benchmark {name}: its file cannot be kept. Download it and give --benchmark {name}=FILE."
            )
        judge["demands"] = where
    return Examination(name, kind.rule, judge, _all(source, found))


def _text(path: Path, source: str) -> str:
    from align.files.texts import read_text

    try:
        return read_text(path)
    except Unreadable as error:
        raise UserError(f"--benchmark {source}: {error}") from None


def _read(name: str, where: str, read: Callable[[], list[Asked]]) -> list[Asked]:
    try:
        return read()
    except (_Wrong, Unreadable) as error:
        raise UserError(
            f"--benchmark {name}: {where} is not laid out as published: {error}. Delete it to fetch it again, or give "
            f"the published file as --benchmark {name}=FILE."
        ) from None


def _all(source: str, found: list[list[Asked]]) -> list[Asked]:
    asked = [one for part in found for one in part]
    if not asked:
        raise UserError(f"--benchmark {source}: there are no questions in it.")
    return asked


def _own(text: str) -> list[Asked]:
    example = '{"prompt": ..., "questions": [{"question": ...}]}'
    try:
        return [_record(row, f"line {number}") for number, row in json_lines(text, "it", example)]
    except (_Wrong, Unreadable) as error:
        raise UserError(f"--benchmark: {error}. Write one {example} a line.") from None


def _record(row: Any, where: str) -> Asked:
    if not isinstance(row, Mapping) or not _said(row.get("prompt")) or not isinstance(row.get("questions"), list):
        raise _Wrong(f"{where} has no prompt and questions")
    questions = []
    for place, one in enumerate(row["questions"]):
        if not isinstance(one, Mapping) or not _said(one.get("question")):
            raise _Wrong(f"{where}, question {place + 1} has no text")
        parents = one.get("parents", [])
        known = isinstance(parents, list) and all(isinstance(k, int) and 1 <= k <= place for k in parents)
        if not known:
            raise _Wrong(f"{where}, question {place + 1}: parents {parents!r} are not places of earlier questions")
        answer, skill = str(one.get("answer", "Yes")), str(one.get("skill", ""))
        questions.append(Question(one["question"].strip(), answer, skill, tuple(k - 1 for k in parents)))
    if not questions:
        raise _Wrong(f"{where} asks nothing")
    return Asked(row["prompt"].strip(), str(row.get("category", "")), tuple(questions))


def _said(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _geneval(text: str, category: str) -> list[Asked]:
    rows = [row for _, row in json_lines(text, "it", '{"tag": ..., "prompt": ...}')]
    if not all(isinstance(row, Mapping) and _said(row.get("prompt")) and _said(row.get("tag")) for row in rows):
        raise _Wrong('a line is no {"tag": ..., "prompt": ..., "include": [...]}')
    return [Asked(r["prompt"], r["tag"], (Question(r["prompt"], "Yes", r["tag"]),)) for r in rows]


def _geneval2(text: str, category: str) -> list[Asked]:
    found = []
    for number, row in json_lines(text, "it", '{"prompt": ..., "vqa_list": [...], "skills": [...]}'):
        pairs, skills = (row.get("vqa_list"), row.get("skills")) if isinstance(row, Mapping) else (None, None)
        if not isinstance(pairs, list) or not isinstance(skills, list) or not pairs or len(pairs) != len(skills):
            raise _Wrong(f"line {number} has not as many skills as questions")
        if not all(isinstance(pair, list) and len(pair) == 2 and all(map(_said, pair)) for pair in pairs):
            raise _Wrong(f"line {number} has a question without an answer")
        asked = tuple(
            Question(text, right, skill) for (text, right), skill in zip(pairs, map(str, skills), strict=True)
        )
        found.append(Asked(row["prompt"], f"{row.get('atom_count', '')} atoms", asked))
    return found


def _dpg(text: str, category: str) -> list[Asked]:
    """A row a question; `dependency` names the parents by their proposition_id, 0 for none."""
    rows: dict[str, list[dict[str, str]]] = {}
    for number, row in table(text, "it", ".csv", padded=True):
        missing = [key for key in DPG if not row.get(key, "").strip()]
        if missing:
            raise _Wrong(f"row {number} has nothing under {missing[0]}")
        rows.setdefault(row["item_id"].strip(), []).append(row)
    found = []
    for item, several in rows.items():
        place = {row["proposition_id"].strip(): k for k, row in enumerate(several)}
        questions = []
        for row in several:
            named = [part.strip() for part in row["dependency"].split(",") if part.strip() not in ("", "0")]
            parents = tuple(place[part] for part in named if part in place)
            questions.append(Question(row["question_natural_language"].strip(), "Yes", row["category_broad"], parents))
        source = re.sub(r"[\d_]+$", "", item) or "numbered"
        found.append(Asked(several[0]["text"].strip(), source, tuple(questions)))
    return found


ATTRIBUTES = ("color", "shape", "texture")
DPG = ("item_id", "text", "proposition_id", "dependency", "category_broad", "question_natural_language")


def _compbench(text: str, category: str) -> list[Asked]:
    """One question a phrase: what stands between "and" and commas (published: the noun chunks of spaCy)."""
    found = []
    for line in filter(None, map(str.strip, text.splitlines())):
        phrases = [part.strip(" .") for part in re.split(r",| and ", line) if part.strip(" .")]
        asked = tuple(Question(f"Is there {phrase} in the image?", "Yes", category) for phrase in phrases)
        found.append(Asked(line, category, asked))
    return found


def _compbench_all(text: str, category: str) -> list[Asked]:
    """The attributes' phrases; of relations, numbers, complex prompts the whole (published: UniDet, CLIP, a mean)."""
    if category in ATTRIBUTES:
        return _compbench(text, category)
    said = filter(None, map(str.strip, text.splitlines()))
    return [Asked(one, category, (Question(f'Does the image show "{one}"?', "Yes", category),)) for one in said]


def _unigenbench(text: str, category: str) -> list[Asked]:
    """A row a prompt; `sub_dims_en` holds its test points, and of each what it is in this prompt (where that is left
    out: the prompt)."""
    found = []
    for number, row in table(text, "it", ".csv"):
        try:
            told, prompt = repaired(row["sub_dims_en"]), row["prompt_en"].strip()
            points, said = told["Testpoints"], [one.strip() or prompt for one in told["Testpoint Description"]]
            if not prompt or not points or len(points) != len(said) or not all(map(_said, points)):
                raise ValueError
        except (KeyError, TypeError, AttributeError, ValueError):
            raise _Wrong(f"row {number} has no prompt_en, or no test points with a description each") from None
        asked = tuple(
            Question(f'Does the image meet "{what}" ({point.strip()})?', "Yes", point.partition(" - ")[0].strip())
            for point, what in zip(points, said, strict=True)
        )
        found.append(Asked(prompt, str(told.get("Primary Categories", "")), asked))
    return found


class _Known(NamedTuple):
    home: str
    """Its name in BENCHMARKS."""
    read: Callable[[str, str], list[Asked]]
    rule: Rule
    judge: Mapping[str, Any]
    only: tuple[str, ...] = ()
    """The categories whose rule is known here."""


_VLM = {"name": "vqascore"}
MASK2FORMER = "facebook/mask2former-swin-small-coco-instance"  # GenEval's own network, as transformers has it
KNOWN = {
    "geneval": _Known("geneval", _geneval, "tasks", {"name": "detector", "form": "verdict", "model": MASK2FORMER}),
    "geneval2": _Known("geneval2", _geneval2, "geometric", {"name": "vqascore", "model": "Qwen/Qwen3-VL-8B-Instruct"}),
    "dpg": _Known("dpg", _dpg, "graph", _VLM),
    "t2i-compbench": _Known("t2i-compbench", _compbench, "product", _VLM, ATTRIBUTES),
    "t2i-compbench++": _Known("t2i-compbench++", _compbench_all, "product", _VLM),
    "unigenbench": _Known("unigenbench", _unigenbench, "points", _VLM),
    "unigenbench-long": _Known("unigenbench-long", _unigenbench, "points", _VLM),
}
