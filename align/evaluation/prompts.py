"""On what `align evaluate` judges: prompts with their categories, from a benchmark, a set, a file or a folder."""

import csv
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.data.prompts import SHAPES, load_prompts
from align.errors import UserError
from align.evaluation.benchmarks import BENCHMARKS, Item
from align.evaluation.benchmarks import load as load_benchmark

TABLES = {".csv": ",", ".tsv": "\t"}
KINDS = (".txt", ".jsonl", *TABLES)
CATEGORY = ("category", "tag", "skill")  # keys and columns that name it, the first that is there


def load(source: str | list[str], count: int | None = None) -> list[Item]:
    """The prompts of `source`; with `count` so many of them, the categories in turn, so that each has its share.

    source: a benchmark (`parti`, or `parti=FOLDER_OR_FILE` for a copy of its files), a set (shapes:report,
    scenes:report), a file (.txt, .jsonl, .csv, .tsv), a folder of such files, or the prompts themselves.
    """
    if isinstance(source, str) and source.startswith(SHAPES):
        return [Item(prompt, _skill(prompt)) for prompt in load_prompts(source, count=count, key="--prompts")]
    items = [Item(text) for text in source] if isinstance(source, list) else _load(source)
    return items if count is None else [items[place] for place in shares(items, count)]


def _load(source: str) -> list[Item]:
    name, _, copy = source.partition("=")
    path = Path(source).expanduser()
    if name in BENCHMARKS and not path.exists():
        return load_benchmark(name, copy or None)
    if path.is_dir():
        return _folder(path)
    if path.suffix in (".jsonl", *TABLES) and path.is_file():
        return _records(path)
    try:
        return [Item(prompt) for prompt in load_prompts(source, key="--prompts")]
    except UserError as error:
        raise UserError(f"{error} Benchmarks: {', '.join(BENCHMARKS)}.") from None


def _skill(prompt: str) -> str:
    from align.shapes.captions import parse

    return parse(prompt).skill


def _folder(path: Path) -> list[Item]:
    """All prompts of its files, in the files' order; a file is a category, unless each holds one prompt alone."""
    files = sorted(file for file in path.iterdir() if file.suffix in KINDS)
    if not files:
        raise UserError(
            f"--prompts {path}: there is no {', '.join(KINDS)} file in this folder. Give one that has some."
        )
    read = {file: _load(str(file)) for file in files}
    if all(len(items) == 1 for items in read.values()):
        return [items[0] for items in read.values()]
    return [Item(item.prompt, item.category or file.stem) for file, items in read.items() for item in items]


def _records(path: Path) -> list[Item]:
    """Rows with a prompt and, if there is one, a category."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts {path}: cannot be read as UTF-8 text ({error}). Check the file.") from None
    if path.suffix in TABLES:
        rows: list[Any] = list(csv.DictReader(text.splitlines(), delimiter=TABLES[path.suffix]))
    else:
        rows = [_json(line, f"{path}: line {n}") for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not rows:
        raise UserError(f"--prompts {path}: there are no prompts in it. Give at least one.")
    return [_item(row, f"{path}: prompt {number}") for number, row in enumerate(rows, 1)]


def _json(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"--prompts {where} is not JSON ({error.msg}). Write one {{...}} a line.") from None


def _item(row: Any, where: str) -> Item:
    named = {str(key).strip().lower(): value for key, value in row.items()} if isinstance(row, dict) else {}
    prompt = named.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"--prompts {where} has no text under the key prompt. Give every row one.")
    category = next((named[key] for key in CATEGORY if named.get(key)), "")
    return Item(prompt.strip(), str(category).strip())


def shares(items: Sequence[Item], count: int) -> list[int]:
    """The places of the first prompts of each category in turn, `count` of them, in the order in which they were."""
    decks: dict[str, list[int]] = defaultdict(list)
    for place, item in enumerate(items):
        decks[item.category].append(place)
    turns = sorted((turn, place) for deck in decks.values() for turn, place in enumerate(deck))
    return sorted(place for _, place in turns[:count])
