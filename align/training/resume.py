"""Where a run starts: fresh, or at a checkpoint of the same recipe and data; a change is refused by its keys."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from align.errors import UserError
from align.files import code, places
from align.training import checkpoint
from align.training.checkpoint import Checkpoints, Damaged
from align.training.contents import changed as changed_contents

FREE = (
    "output",
    "evaluate",
    "data.cache",
    "hooks.progress",
    "hooks.metrics",
    "train.micro_batch_size",
    "train.auto_micro_batch",
    "train.num_processes",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.export_every",
    "train.max_failures",
)
"""Keys, and all keys below them, that may change between the parts of a run: no update depends on them."""
LENGTH = "train.num_updates"
BY_BATCH = ("train.micro_batch_size", "train.num_processes")
"""Of these, those that adapter.dropout depends on: its masks are drawn for a micro-batch of a process."""


def find(
    output: Path,
    resume: str,
    recipe: dict[str, Any],
    say: Callable[[str], None],
    contents: Mapping[str, str] | None = None,
) -> Path | None:
    """The checkpoint to go on from, or None to start afresh.

    `resume` is "auto" (the newest sound checkpoint in `output`, if there is one), "never", or the path of a checkpoint
    or of a run's folder. A checkpoint of another recipe, or of other `contents`, raises UserError.
    """
    if resume == "never":
        return None
    if resume == "auto":
        path = Checkpoints(output / "checkpoints", say=say).newest()
    else:
        path = _given(Path(resume).expanduser(), say)
    if path is None:
        return None
    found = meta(path)
    if changes := list(changed(found["recipe"], recipe)):
        listed = ", ".join(f"{key}: {old!r} -> {new!r}{_why(key, recipe)}" for key, old, new in changes)
        how = "set another output, or start over with --resume never" if resume == "auto" else "or leave out --resume"
        onward = f" A new run begins with its adapter by adapter.init={path}." if recipe.get("adapter") else ""
        raise UserError(
            f"{path} belongs to another recipe ({listed}), so going on from it would be neither run. Undo the change, "
            f"{how}.{onward}"
        )
    same_contents(path, found, contents or {})
    return path


def meta(path: Path) -> dict[str, Any]:
    """What a checkpoint says of the run that wrote it."""
    try:
        found = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        if isinstance(found["recipe"], dict) and isinstance(found["step"], int):
            return found
        said = "no recipe, or no step"
    except (OSError, ValueError, KeyError, TypeError) as error:
        said = str(error)
    raise UserError(f"{path}: its meta.json is not what a run writes ({said}). Give another, or --resume never.")


def same_contents(path: Path, written: Mapping[str, Any], now: Mapping[str, str]) -> None:
    """Raises UserError where a checkpoint was written with other contents behind the same names."""
    if found := changed_contents(written.get("contents", {}), now):
        raise UserError(
            f"{path} belongs to other contents behind the same names: {', '.join(found)}. Going on from it would be "
            "neither run. Put them back as they were, set another output, or start over with --resume never."
        )


def changed(old: dict[str, Any], new: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(key, old value, new value) for each setting that an update depends on and that differs."""
    before, after = dict(_leaves(places.whole(old))), dict(_leaves(places.whole(new)))
    free = FREE
    if before.get("adapter.dropout"):
        free = tuple(key for key in free if key not in BY_BATCH)
    if after.get("optim.schedule") == "constant" and after.get(LENGTH, 0) >= before[LENGTH]:
        free = (*free, LENGTH)  # at a constant rate a longer run begins as the shorter one does
    for key in sorted(before.keys() | after.keys()):
        same = code.named(before.get(key)) == code.named(after.get(key))  # what it says is compared by contents
        if not same and not any(f"{key}.".startswith(f"{word}.") for word in free):
            yield key, before.get(key), after.get(key)


def _why(key: str, recipe: dict[str, Any]) -> str:
    """What a longer run would change, where it is not plain."""
    schedule = recipe.get("optim", {}).get("schedule", "constant")
    return f", over which optim.schedule={schedule} spreads the rate" * (key == LENGTH and schedule != "constant")


def _given(path: Path, say: Callable[[str], None]) -> Path:
    if (path / checkpoint.MANIFEST).is_file():
        try:
            checkpoint.verify(path)
        except Damaged as error:
            raise UserError(f"--resume {path}: the checkpoint is damaged ({error}). Give another, or auto.") from None
        return path
    newest = Checkpoints(path / "checkpoints", say=say).newest() or Checkpoints(path, say=say).newest()
    if newest is None:
        raise UserError(f"--resume {path}: there is no checkpoint. Give a run's folder, a checkpoint's, auto or never.")
    return newest


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, tree
