"""Code of a user's own that a recipe names, path/to/file.py:name: where it is found, and the copy that a run keeps.

A path counts from the working folder. Where it leads to nothing there, it counts from the recipe's folder. A run keeps
what its recipe names in its folder code/, and that goes before another file of the same path: a run that is opened from
elsewhere, or later, means the code that it was trained with.
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
    found = {text: Path(form[1]).expanduser() for text in _texts(tree) if (form := FORM.fullmatch(text))}
    return {t: hashlib.blake2b(p.read_bytes(), digest_size=8).hexdigest() for t, p in found.items() if p.is_file()}


def keep(tree: Any, output: Path) -> None:
    """Copies what `tree` names into OUTPUT/code."""
    for text in _texts(tree):
        if (found := FORM.fullmatch(text)) and (source := Path(found[1]).expanduser()).is_file():
            target = output / FOLDER / _within(Path(found[1]))
            if target.exists() and target.samefile(source):
                continue
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
            except OSError as error:
                raise UserError(
                    f"{target}: cannot be written ({error.strerror}). Set output to another folder."
                ) from None


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


def _mapped(tree: Any, place: Callable[[Path], Path]) -> Any:
    if isinstance(tree, dict):
        return {key: _mapped(value, place) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_mapped(value, place) for value in tree]
    found = FORM.fullmatch(tree) if isinstance(tree, str) else None
    if found is None:
        return tree
    said = Path(found[1]).expanduser()
    changed = place(said)
    return tree if changed == said else f"{changed.as_posix()}:{found[2]}"


def _texts(tree: Any) -> Iterator[str]:
    if isinstance(tree, dict | list):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _texts(value)
    elif isinstance(tree, str):
        yield tree
