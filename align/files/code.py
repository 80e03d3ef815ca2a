"""A user's own code and prompts that a recipe names, path/to/file.py:name and `prompts: path/to/file.txt`: where they
are found, and the copy that a run keeps.

A path counts from the working folder. Where it leads to nothing there, it counts from the recipe's folder. A run keeps
what its recipe names in its folder code/, and that goes before another file of the same path: a run that is opened from
elsewhere, or later, means the code and the prompts that it was trained with.
"""

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from align.errors import UserError

FOLDER, RECIPE = "code", "recipe.yaml"
FORM = re.compile(r"([^\n]+\.py):([^\W\d]\w*)")
PROMPTS, KINDS = "prompts", (".txt", ".jsonl", ".csv", ".tsv", ".json")
"""The key that names a file of prompts, and its endings."""


def located(tree: Any, recipe: Path) -> Any:
    """`tree`, the recipe of the file `recipe`, with each path as it leads to the file from the working folder."""

    def place(said: Path) -> Path:
        kept, beside = recipe.parent / FOLDER / _within(said), recipe.parent / said
        here = said if said.is_file() else None
        if kept.is_file() and (here is None or here.read_bytes() != kept.read_bytes()):
            return kept
        return beside if here is None and beside.is_file() else said

    return _mapped(tree, place)


def told(tree: Any) -> Any:
    """`tree` with each path into a run's folder code/ as the run's own recipe says it."""
    return _mapped(tree, lambda path: _within(path) if _kept(path) else path)


def named(tree: Any) -> Any:
    """`tree` with each path as it is named inside code/: what two recipes of one run have in common."""
    return _mapped(tree, _within)


def digests(tree: Any) -> dict[str, str]:
    """{what `tree` names: a digest of the file} of all that is there."""
    found = {text: path for text, path in _files(tree) if FORM.fullmatch(text)}
    return {t: hashlib.blake2b(p.read_bytes(), digest_size=8).hexdigest() for t, p in found.items() if p.is_file()}


def keep(tree: Any, output: Path) -> None:
    """Copies what `tree` names into OUTPUT/code."""
    for _, source in _files(tree):
        if source.is_file():
            target = output / FOLDER / _within(source)
            if target.exists() and target.samefile(source):
                continue
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
            except OSError as error:
                raise UserError(
                    f"{target}: cannot be written ({error.strerror}). Set output to another folder."
                ) from None


def own(tree: Any) -> list[str]:
    """The names of all files that `tree` needs of its author's."""
    return list(dict.fromkeys(path.name for _, path in _files(tree)))


def _kept(path: Path) -> int | None:
    """Where in the path's parts a run's folder code/ stands."""
    places = [i for i, part in enumerate(path.parts) if part == FOLDER and Path(*path.parts[:i], RECIPE).is_file()]
    return places[-1] if places else None


def _within(path: Path) -> Path:
    """The path below a run's folder code/; where it leads out of the working folder, by a word for where."""
    if (place := _kept(path)) is not None:
        return Path(*path.parts[place + 1 :])
    if not {"..", "~", path.anchor}.isdisjoint(path.parts):
        return Path(hashlib.blake2b(str(path.parent).encode(), digest_size=4).hexdigest(), path.name)
    return path


def _mapped(tree: Any, place: Callable[[Path], Path], key: str = "") -> Any:
    if isinstance(tree, dict):
        return {key: _mapped(value, place, key) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_mapped(value, place) for value in tree]
    found = _named(tree, key) if isinstance(tree, str) else None
    if found is None:
        return tree
    path, rest = found
    changed = place(path)
    return tree if changed == path else f"{changed.as_posix()}{rest}"


def _named(text: str, key: str) -> tuple[Path, str] | None:
    """(path, what follows it) of a text that names a file of the user's."""
    if found := FORM.fullmatch(text):
        return Path(found[1]).expanduser(), f":{found[2]}"
    if key == PROMPTS and "\n" not in text and text.lower().endswith(KINDS):
        return Path(text).expanduser(), ""
    return None


def _files(tree: Any, key: str = "") -> Iterator[tuple[str, Path]]:
    """(text, path) of all that `tree` names."""
    if isinstance(tree, dict | list):
        for name, value in tree.items() if isinstance(tree, dict) else (("", value) for value in tree):
            yield from _files(value, name)
    elif isinstance(tree, str) and (found := _named(tree, key)):
        yield tree, found[0]
