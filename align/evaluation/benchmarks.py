"""Known prompt benchmarks by name: where each is public, how its files are laid out, and how they become prompts.

None of their text is part of this project: the files are fetched from their authors when they are first asked for
(align/evaluation/benchmarks_fetch.py), and a layout or a number of prompts other than the published one is refused.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from align.data._prompt_files import Item
from align.errors import UserError
from align.evaluation.benchmarks_fetch import fetch
from align.files.texts import Unreadable, json_lines, lines, table
from rewards._numerals import counted


class _Layout(Exception):
    """How a file differs from its published layout."""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark: `home` + each of `files` -> `read` -> `count` prompts."""

    about: str
    """What it asks of a model, and the paper."""
    home: str
    """URL before the files' names, pinned to a commit where the host has them."""
    files: Mapping[str, str]
    """{file name: the category of all its prompts, or "" where the file says it}."""
    read: Callable[[str, str], list[Item]]
    """(text of a file, its category) -> its prompts."""
    count: int


def load(name: str, source: str | None = None) -> list[Item]:
    """The prompts of the benchmark `name`, in their published order.

    source: a folder or URL to read its files from in place of their home; for a benchmark of one file, the file itself.
    """
    known = BENCHMARKS[name]
    items: list[Item] = []
    for file, category in known.files.items():
        text, where = fetch(name, file, source or known.home, alone=len(known.files) == 1)
        try:
            items += known.read(text, category)
        except _Layout as error:
            raise UserError(
                f"--prompts {name}: {where} is not laid out as published: {error}. Delete it to fetch it again, or "
                f"give the published file as --prompts {name}=FILE."
            ) from None
    if len(items) != known.count and source is None:
        raise UserError(
            f"--prompts {name}: {known.home} gave {counted(len(items), 'prompt')}, and {known.count} are published. "
            f"Its files have changed; give those that you mean as --prompts {name}=FOLDER."
        )
    return items


def _table(text: str, columns: tuple[str, ...], suffix: str) -> list[list[str]]:
    """The named columns of each row; their names are compared without case."""
    try:
        found = table(text, "it", suffix, padded=True)
    except Unreadable as error:
        raise _Layout(str(error)) from None
    there = [name for name in (found[0][1] if found else {}) if name]
    if missing := [column for column in columns if column.lower() not in there]:
        raise _Layout(f"it has no column {' and no column '.join(missing)}, only {', '.join(there) or 'none'}")
    rows = [[row[column.lower()].strip() for column in columns] for _, row in found]
    for (line, _), row in zip(found, rows, strict=True):
        if not all(row):
            raise _Layout(f"row {line} is empty under {columns[row.index('')]}")
    return rows


def _parti(text: str, category: str) -> list[Item]:
    return [Item(*row) for row in _table(text, ("Prompt", "Category"), ".tsv")]


def _drawbench(text: str, category: str) -> list[Item]:
    return [Item(*row) for row in _table(text, ("Prompts", "Category"), ".csv")]


def _geneval(text: str, category: str) -> list[Item]:
    return [Item(prompt, tag) for prompt, tag in _records(text, "prompt", "tag")]


def _geneval2(text: str, category: str) -> list[Item]:
    """The category is the number of atoms: how much a prompt asks for."""
    return [Item(prompt, f"{atoms} atoms") for prompt, atoms in _records(text, "prompt", "atom_count")]


def _records(text: str, *keys: str) -> list[list[Any]]:
    """What each line's object has under the keys."""
    found = []
    try:
        for number, record in json_lines(text, "it", '{"prompt": ...}'):
            if not isinstance(record, dict) or not {*keys} <= record.keys():
                raise _Layout(f"line {number} has not all of {', '.join(keys)}")
            found.append([record[key] for key in keys])
    except Unreadable as error:
        raise _Layout(str(error)) from None
    return found


def _lines(text: str, category: str) -> list[Item]:
    if text.lstrip()[:1] in ("<", "{", "["):
        raise _Layout("it holds a page or JSON, not one prompt a line")
    try:
        return [Item(line, category) for _, line in lines(text, "it")]
    except Unreadable as error:
        raise _Layout(str(error)) from None


def _list(text: str, category: str) -> list[Item]:
    try:
        prompts = json.loads(text)
    except json.JSONDecodeError:
        prompts = None
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) and prompt.strip() for prompt in prompts):
        raise _Layout("it is no JSON list of prompts")
    return [Item(prompt.strip(), category) for prompt in prompts]


def _dpg(text: str, category: str) -> list[Item]:
    """One row a question; the item's number without its digits is where the prompt was taken from."""
    found: dict[str, str] = dict(_table(text, ("item_id", "text"), ".csv"))  # type: ignore[arg-type]
    return [Item(prompt, re.sub(r"[\d_]+$", "", item) or "numbered") for item, prompt in found.items()]


def _unigenbench(text: str, category: str) -> list[Item]:
    """The category is the first of those that a row names."""
    found = []
    for prompt, told in _table(text, ("prompt_en", "sub_dims_en"), ".csv"):
        try:
            found.append(Item(prompt, str(repaired(told)["Primary Categories"])))
        except (ValueError, KeyError, TypeError):
            raise _Layout("sub_dims_en holds no JSON with Primary Categories") from None
    return found


def repaired(told: str) -> Any:
    """JSON in which a comma between two texts may be missing, as in one row of UniGenBench++'s long prompts."""
    try:
        return json.loads(told)
    except ValueError:
        return json.loads(re.sub(r'"\s+"', '", "', told))


_GITHUB = "https://raw.githubusercontent.com/"
_UNIGENBENCH = _GITHUB + "CodeGoat24/UniGenBench/49d0bcebb0b9418d975d3957c2fee10f34811d14/data/"
_COMPBENCH = ("color", "shape", "texture", "spatial", "non_spatial", "complex")

BENCHMARKS = {
    "parti": Benchmark(
        "PartiPrompts: 12 categories from single words to long scenes (Yu et al. 2022, arXiv 2206.10789)",
        _GITHUB + "google-research/parti/5a657978134374ce28973948331b319adef164bd/",
        {"PartiPrompts.tsv": ""},
        _parti,
        1632,
    ),
    "drawbench": Benchmark(
        "DrawBench: 11 kinds of hard prompts (Saharia et al. 2022, arXiv 2205.11487)",
        "https://docs.google.com/spreadsheets/d/1y7nAbmR4FREi6npB1u-Bo3GFdwdOPYJc617rBOxIRHY/",
        {"gviz/tq?tqx=out:csv&sheet=Sheet1": ""},
        _drawbench,
        200,
    ),
    "geneval": Benchmark(
        "GenEval: objects, counts, colours, positions (Ghosh et al. 2023, arXiv 2310.11513)",
        _GITHUB + "djghosh13/geneval/af4902f24d3ca90ebbb446dd9891a59e0f82725f/prompts/",
        {"evaluation_metadata.jsonl": ""},
        _geneval,
        553,
    ),
    "geneval2": Benchmark(
        "GenEval 2: objects, attributes, counts, relations of 3 to 10 atoms (Kamath et al. 2025, arXiv 2512.16853)",
        _GITHUB + "facebookresearch/GenEval2/a6e82d2289e8d418f27f0adee77908b07060eea3/",
        {"geneval2_data.jsonl": ""},
        _geneval2,
        800,
    ),
    "t2i-compbench": Benchmark(
        "T2I-CompBench, validation: attributes, relations, complex prompts (Huang et al. 2023, arXiv 2307.06350)",
        _GITHUB + "Karine-Huang/T2I-CompBench/1b7094991a57f3c22abdd4f6e8ba6c1a15517073/examples/dataset/",
        {f"{kind}_val.txt": kind for kind in _COMPBENCH},
        _lines,
        1800,
    ),
    "t2i-compbench++": Benchmark(
        "T2I-CompBench++, validation: also numbers and space in depth (Huang et al. 2025, arXiv 2307.06350v3)",
        _GITHUB + "Karine-Huang/T2I-CompBench/1b7094991a57f3c22abdd4f6e8ba6c1a15517073/examples/dataset/",
        {f"{kind}_val.txt": kind for kind in (*_COMPBENCH, "3d_spatial", "numeracy")},
        _lines,
        2400,
    ),
    "unigenbench": Benchmark(
        "UniGenBench++, English: test points of ten dimensions (Wang et al. 2025, arXiv 2510.18701)",
        _UNIGENBENCH,
        {"test_prompts_en.csv": ""},
        _unigenbench,
        600,
    ),
    "unigenbench-long": Benchmark(
        "UniGenBench++, English, the same prompts at length (Wang et al. 2025, arXiv 2510.18701)",
        _UNIGENBENCH,
        {"test_prompts_en_long.csv": ""},
        _unigenbench,
        600,
    ),
    "hpdv2": Benchmark(
        "HPD v2, the benchmark's prompts in four styles (Wu et al. 2023, arXiv 2306.09341)",
        "https://huggingface.co/datasets/zhwang/HPDv2/resolve/main/benchmark/",
        {f"{style}.json": style for style in ("anime", "concept-art", "paintings", "photo")},
        _list,
        3200,
    ),
    "dpg": Benchmark(
        "DPG-Bench: dense paragraphs from many sources (Hu et al. 2024, arXiv 2403.05135)",
        _GITHUB + "TencentQQGYLab/ELLA/3c228f1dc6c4d3cad0a47493816151a419f14db3/dpg_bench/",
        {"dpg_bench.csv": ""},
        _dpg,
        1065,
    ),
}
