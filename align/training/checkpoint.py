"""Checkpoints that resume a run bit for bit: written whole or not at all, checked when read, and free of pickle.

A checkpoint is a folder `step-000050`, and no other name is one: copies that a user keeps beside them are neither taken
up nor removed. It has, for each object that has a state, its tensors in NAME.safetensors and the
rest of its state in state.json; meta.json (step, recipe, versions, threads) and manifest.json with every file's sha256.
It is written under a temporary name, flushed to the disk, then renamed: a crash leaves the previous ones untouched.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from align.errors import UserError

MANIFEST = "manifest.json"
TEMPORARY = ".writing-"
ABANDONED = "abandoned-"
NAME = re.compile(r"step-(\d{6,})")


class Damaged(Exception):
    """A checkpoint's files are not those that were written; the text says which."""


class Checkpoints:
    """The checkpoints of one run in `folder`, of which the newest `keep` stay, and `base`, the one that the run went
    back to, if it did."""

    def __init__(self, folder: Path, *, keep: int = 2, say: Callable[[str], None] = print):
        self.folder = folder
        self.keep = keep
        self.say = say
        self.base: int | None = None

    def steps(self) -> list[Path]:
        """The finished checkpoints, oldest first."""
        found = {number: path for path in self.folder.glob("step-*") if (number := step_of(path)) is not None}
        return [found[number] for number in sorted(found)]

    def go_back(self, path: Path) -> None:
        """Makes the checkpoint `path` the newest: later ones of this run are a future that is given up, and are moved
        aside. It stays as long as what follows goes on from it."""
        ours = path.resolve().parent == self.folder.resolve()
        step = json.loads((path / "meta.json").read_text(encoding="utf-8"))["step"] if ours else -1
        later = [each for each in self.steps() if (step_of(each) or 0) > step]
        if ours and any(_whole(each) for each in later):  # else they were passed over as damaged
            self.base = step
        for each in later:
            aside = self.folder / f"{ABANDONED}{each.name}"
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(each, aside)
        if later:
            names = ", ".join(f"{ABANDONED}{each.name}" for each in later)
            self.say(f"back at {path}: the later checkpoints in {self.folder} are given up, and kept as {names}")

    def clear(self) -> None:
        """Removes this run's checkpoints; what a user keeps beside them stays."""
        for path in list(self.folder.glob("*")):
            if step_of(path) is not None or path.name.startswith((TEMPORARY, f"{ABANDONED}step-")):
                shutil.rmtree(path)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def save(self, step: int, states: dict[str, dict[str, Any]], meta: dict[str, Any]) -> Path:
        """Writes the checkpoint of `step`: `states` maps a name to a state_dict of tensors and JSON-able values."""
        try:
            return self._save(step, states, meta)
        except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own
            said = getattr(error, "strerror", None) or error
            shutil.rmtree(self.folder / f"{TEMPORARY}{named(step)}", ignore_errors=True)  # the room it has is needed
            raise UserError(
                f"{self.folder}: the checkpoint of update {step} cannot be written ({said}). Make "
                "room or set output to another folder; the same command goes on from the checkpoint before it."
            ) from None

    def _save(self, step: int, states: dict[str, dict[str, Any]], meta: dict[str, Any]) -> Path:
        final = self.folder / named(step)
        temporary = self.folder / f"{TEMPORARY}{final.name}"
        shutil.rmtree(temporary, ignore_errors=True)  # what a crash left
        temporary.mkdir(parents=True)
        plain = {}
        for name, state in states.items():
            tensors: dict[str, Tensor] = {}
            plain[name] = encode(state, tensors, "")
            if tensors:
                save_file(tensors, temporary / f"{name}.safetensors")
        (temporary / "state.json").write_text(json.dumps(plain, indent=1), encoding="utf-8")
        (temporary / "meta.json").write_text(json.dumps({"step": step, **meta}, indent=1), encoding="utf-8")
        sums = {path.name: _sha256(path) for path in sorted(temporary.iterdir())}
        (temporary / MANIFEST).write_text(json.dumps(sums, indent=1), encoding="utf-8")
        for path in [*temporary.iterdir(), temporary]:
            _flush(path)
        if final.exists():  # a damaged one of the same step, passed over by `newest`
            shutil.rmtree(final)
        os.replace(temporary, final)
        _flush(self.folder)
        for old in self.steps()[: -self.keep]:
            if step_of(old) != self.base:
                shutil.rmtree(old)
        return final

    def newest(self) -> Path | None:
        """The newest checkpoint whose files are as written; says which damaged ones it passes over."""
        for path in reversed(self.steps()):
            try:
                verify(path)
            except Damaged as error:
                self.say(f"checkpoint {path} is damaged ({error}) and passed over")
            else:
                return path
        return None


def named(step: int) -> str:
    """The name of what belongs to an update."""
    return f"step-{step:06d}"


def set_aside(folder: Path, step: int) -> None:
    """Renames what `folder` holds of updates after `step`, which are made anew or are of a future given up."""
    for path in folder.glob("step-*"):
        found = NAME.fullmatch(path.name)
        if found is not None and int(found[1]) > step:
            aside = folder / f"{ABANDONED}{path.name}"
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(path, aside)


def step_of(path: Path) -> int | None:
    """The update that a folder is the checkpoint of, by its name and what it says itself; None: it is none."""
    found = NAME.fullmatch(path.name)
    if found is None or not path.is_dir() or f"step-{int(found[1]):06d}" != path.name:
        return None
    try:
        said = json.loads((path / "meta.json").read_text(encoding="utf-8"))["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return int(found[1])  # damaged, which is said where it is read
    return int(found[1]) if said == int(found[1]) else None


def _whole(path: Path) -> bool:
    try:
        verify(path)
    except Damaged:
        return False
    return True


def verify(path: Path) -> None:
    """Raises Damaged unless the folder holds exactly what its manifest says."""
    try:
        sums = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        assert isinstance(sums, dict)
    except (OSError, ValueError, AssertionError):
        raise Damaged(f"{MANIFEST} is missing or unreadable") from None
    for name, expected in sums.items():
        if Path(name).name != name:
            raise Damaged(f"{MANIFEST} names {name!r}, which is no file of the folder")
        if not (path / name).is_file():
            raise Damaged(f"{name} is missing")
        if _sha256(path / name) != expected:
            raise Damaged(f"{name} has changed")


def load(path: Path) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """(states, meta) of a checkpoint, as they were given to `save`; tensors on the CPU."""
    verify(path)
    try:
        listed = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        plain = json.loads((path / "state.json").read_text(encoding="utf-8"))
        states = {}
        for name, value in plain.items():
            file = f"{name}.safetensors"
            states[name] = decode(value, load_file(path / file) if file in listed else {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise Damaged(f"its files are whole, and no checkpoint that was written here: {error}") from None
    return states, meta


def encode(value: Any, tensors: dict[str, Tensor], path: str) -> Any:
    """A nested state as JSON-able values; its tensors go into `tensors` under their paths."""
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()  # clone: safetensors refuses shared memory
        return {"$tensor": path}
    if isinstance(value, dict):
        items = [[key, encode(item, tensors, f"{path}/{key}")] for key, item in value.items()]
        return {"$dict": items}  # pairs, not an object: an optimiser's keys are integers
    if isinstance(value, list | tuple):
        kind = "$tuple" if isinstance(value, tuple) else "$list"
        return {kind: [encode(item, tensors, f"{path}/{i}") for i, item in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"state{path} is a {type(value).__name__}, which a checkpoint cannot hold")


def decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `encode`."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "$tensor":
        return tensors[content]
    if kind == "$dict":
        return {key: decode(item, tensors) for key, item in content}
    items = [decode(item, tensors) for item in content]
    return tuple(items) if kind == "$tuple" else items


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _flush(path: Path) -> None:
    """To the disk: the file's bytes, or the folder's list of names."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folder, and keeps its list of names by itself
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
