"""A run's folder: one process works in it, and a fresh run leaves nothing of an earlier one that it might be taken
for."""

import shutil
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from align.errors import UserError
from align.files import code, lock
from align.files.output import write
from align.training.checkpoint import Checkpoints

RECIPE, SUMMARY, CHECKPOINTS = "recipe.yaml", "summary.json", "checkpoints"
MARKS = ("metrics.jsonl", CHECKPOINTS, SUMMARY, lock.FILE_NAME)
"""Of these a run's folder has one beside its recipe from its first moment on; a recipe of the user's own has none."""


class RunFolder(ExitStack):
    """Held from the moment that it is a run's folder until the `with` ends; use on the main process."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self.held = False

    def __enter__(self) -> "RunFolder":
        super().__enter__()
        if self.path.resolve() == self.path.resolve().parent:
            raise UserError(f"output={self.path}: is the root of all folders. Set output to one of its own: runs/NAME.")
        if (self.path / RECIPE).is_file():  # before a checkpoint is chosen that another process may replace
            if not any(map(self._ours, MARKS)):
                raise UserError(
                    f"output={self.path}: the {RECIPE} there is no run's, and a run would write its own in its place. "
                    "Set output to another folder, such as runs/NAME."
                )
            self._hold()
        return self

    def keeps(self, checkpoint: Path | None, resume: str, results: Iterable[str], written: Iterable[str] = ()) -> None:
        """Raises UserError where a run that begins afresh, or at another one's `checkpoint`, would replace `results`
        that lie here; `resume` "never" has said that they, and all that a run has `written`, may go. What lies in a
        folder that is no run's goes by no word."""
        inside = checkpoint is not None and self.path.resolve() in checkpoint.resolve().parents
        lost = [name for name in dict.fromkeys((*results, *written, CHECKPOINTS)) if (self.path / name).exists()]
        if not (self.path / RECIPE).is_file():
            if lost:
                raise UserError(
                    f"output={self.path}: is no run's folder, and a run would write its own in place of what lies "
                    f"there ({', '.join(lost)}). Set output to another folder, such as runs/NAME."
                )
            return
        there = [name for name in results if name in lost]
        if resume == "never" or inside or not there:
            return
        never = "start over with --resume never, which removes what is there"
        ended = "a run has ended there" if (self.path / SUMMARY).is_file() else "there is a run's work"
        raise UserError(
            f"output={self.path}: {ended} ({', '.join(lost)}), and it would be lost: "
            + ("there is no checkpoint of it to go on from. " if checkpoint is None else f"{checkpoint} is another's. ")
            + ("Set another output" + (f", or {never}." if checkpoint is None else ", or remove the folder."))
        )

    def open(self, recipe: Mapping[str, Any], text: str, *, fresh: bool, written: Iterable[str]) -> None:
        """Makes the folder and writes the resolved recipe, `text`, into it with the code that `recipe` names. `fresh`:
        what an earlier run has `written` goes, with its checkpoints."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            known = self.held
            self._hold()
            if not known and (self.path / RECIPE).is_file():
                raise UserError(
                    f"output={self.path}: another run has begun there since this one did. Set another output, or give "
                    "the same command again to go on from it."
                )
            if fresh and known:  # a run's folder, so these are a run's files
                for name in written:
                    _remove(self.path / name)
                Checkpoints(self.path / CHECKPOINTS).clear()
            code.keep(recipe, self.path)
            write(self.path / RECIPE, text)
        except OSError as error:
            raise UserError(
                f"output={self.path}: cannot be written ({error.strerror}). Set output to a folder of yours."
            ) from None

    def _ours(self, mark: str) -> bool:
        """Whether a mark is there and a run has made it: folders and files of these names may be anybody's."""
        place = self.path / mark
        if place.is_dir():
            return any(place.glob("*step-*"))
        if not place.is_file():
            return False
        if mark == SUMMARY:
            return b'"network_calls"' in place.read_bytes()
        with place.open("rb") as file:
            line = file.readline()
        return place.suffix != ".jsonl" or not line or b'"step"' in line

    def _hold(self) -> None:
        if not self.held:
            self.enter_context(lock.alone(self.path, "output="))
            self.held = True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
