"""On what `align evaluate` judges: prompts with their categories, from a benchmark, a set, a file or a folder."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from align.data._prompt_files import KINDS, SHAPES, Item, bundled, read
from align.data.prompts import load_prompts
from align.errors import UserError
from align.evaluation.benchmarks import BENCHMARKS
from align.evaluation.benchmarks import load as load_benchmark
from align.files.texts import Unreadable
from rewards._images import hidden


def load(source: str | list[str], count: int | None = None, *, key: str = "--prompts ") -> list[Item]:
    """The prompts of `source`; with `count` so many of them, the categories in turn, so that each has its share.

    source: a benchmark (`parti`, or `parti=FOLDER_OR_FILE` for a copy of its files), a set (shapes:report,
    scenes:report), a file (.txt, .jsonl, .csv, .tsv, .json), a folder of such files, or the prompts themselves. `key`
    begins what is wrong with them.
    """
    if isinstance(source, str) and source.startswith(SHAPES):
        key = key.strip() or "the prompts"
        return [Item(prompt, _skill(prompt)) for prompt in load_prompts(source, count=count, key=key)]
    items = [Item(text) for text in source] if isinstance(source, list) else _load(source, key)
    return items if count is None else [items[place] for place in shares(items, count)]


def _load(source: str, key: str) -> list[Item]:
    name, _, copy = source.partition("=")
    path = Path(source).expanduser()
    if name in BENCHMARKS and not path.exists():
        return load_benchmark(name, copy or None)
    if path.is_dir():
        return _folder(path, key)
    try:
        return read(str(bundled(source) or source))
    except Unreadable as error:
        more = "" if path.suffix.lower() in KINDS else f" Benchmarks: {', '.join(BENCHMARKS)}."
        raise UserError(f"{key}{error}{more}") from None


def _skill(prompt: str) -> str:
    from align.shapes.captions import parse

    return parse(prompt).skill


def _folder(path: Path, key: str) -> list[Item]:
    """All prompts of its files, in the files' order; a file is a category, unless each holds one prompt alone."""
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in KINDS and not hidden(file))
    if not files:
        raise UserError(f"{key}{path}: there is no {', '.join(KINDS)} file in this folder. Give one that has some.")
    found = {file: _load(str(file), key) for file in files}
    if all(len(items) == 1 for items in found.values()):
        return [items[0] for items in found.values()]
    return [Item(item.prompt, item.category or file.stem) for file, items in found.items() for item in items]


def shares(items: Sequence[Item], count: int) -> list[int]:
    """The places of the first prompts of each category in turn, `count` of them, in the order in which they were."""
    decks: dict[str, list[int]] = defaultdict(list)
    for place, item in enumerate(items):
        decks[item.category].append(place)
    turns = sorted((turn, place) for deck in decks.values() for turn, place in enumerate(deck))
    return sorted(place for _, place in turns[:count])
