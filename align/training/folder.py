"""A run's folder: one process works in it, and a fresh run leaves nothing of an earlier one that it might be taken
for."""

import shutil
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from align.errors import UserError
from align.files import code
from align.files.lock import alone
from align.files.output import write
from align.training.checkpoint import Checkpoints

RECIPE = "recipe.yaml"


class RunFolder(ExitStack):
    """Held from the moment that it is a run's folder until the `with` ends; use on the main process."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self.held = False

    def __enter__(self) -> "RunFolder":
        super().__enter__()
        if (self.path / RECIPE).is_file():  # before a checkpoint is chosen that another process may replace
            self._hold()
        return self

    def open(self, recipe: Mapping[str, Any], text: str, *, fresh: bool, written: Iterable[str]) -> None:
        """Makes the folder and writes the resolved recipe, `text`, into it with the code that `recipe` names. `fresh`:
        what an earlier run has `written` goes, with its checkpoints."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._hold()
            if fresh and (self.path / RECIPE).is_file():  # a run's folder, so these are a run's files
                for name in written:
                    _remove(self.path / name)
                Checkpoints(self.path / "checkpoints").clear()
            code.keep(recipe, self.path)
            write(self.path / RECIPE, text)
        except OSError as error:
            raise UserError(
                f"output={self.path}: cannot be written ({error.strerror}). Set output to a folder of yours."
            ) from None

    def _hold(self) -> None:
        if not self.held:
            self.enter_context(alone(self.path, "output="))
            self.held = True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
