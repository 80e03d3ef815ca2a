"""Checkpoints that resume a run bit for bit: written whole or not at all, checked when read, and free of pickle.

A checkpoint is a folder `step-000050` with, for each object that has a state, its tensors in NAME.safetensors and the
rest of its state in state.json; meta.json (step, recipe, versions, threads) and manifest.json with every file's sha256.
It is written under a temporary name, flushed to the disk, then renamed: a crash leaves the previous ones untouched.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

MANIFEST = "manifest.json"
TEMPORARY = ".writing-"


class Damaged(Exception):
    """A checkpoint's files are not those that were written; the text says which."""


class Checkpoints:
    """The checkpoints of one run in `folder`, of which the newest `keep` stay."""

    def __init__(self, folder: Path, *, keep: int = 2, say: Callable[[str], None] = print):
        self.folder = folder
        self.keep = keep
        self.say = say

    def steps(self) -> list[Path]:
        """The finished checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if path.is_dir())

    def save(self, step: int, states: dict[str, dict[str, Any]], meta: dict[str, Any]) -> Path:
        """Writes the checkpoint of `step`: `states` maps a name to a state_dict of tensors and JSON-able values."""
        final = self.folder / f"step-{step:06d}"
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


def verify(path: Path) -> None:
    """Raises Damaged unless the folder holds exactly what its manifest says."""
    try:
        sums = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise Damaged(f"{MANIFEST} is missing or unreadable") from None
    for name, expected in sums.items():
        if not (path / name).is_file():
            raise Damaged(f"{name} is missing")
        if _sha256(path / name) != expected:
            raise Damaged(f"{name} has changed")


def load(path: Path) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """(states, meta) of a checkpoint, as they were given to `save`; tensors on the CPU."""
    verify(path)
    meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
    plain = json.loads((path / "state.json").read_text(encoding="utf-8"))
    states = {}
    for name, value in plain.items():
        file = path / f"{name}.safetensors"
        states[name] = decode(value, load_file(file) if file.is_file() else {})
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
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
