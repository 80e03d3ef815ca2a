"""The run's record: metrics.jsonl, always written, and Accelerate's trackers, any of which may fail without harm."""

import importlib.util
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Literal, TextIO

from align.errors import UserError
from align.files.output import write
from align.hooks._base import Hook, State, Surroundings
from align.registry import ComponentConfig
from rewards._config import suggest
from rewards._errors import RegistryError
from rewards._registry import load_object

FILE_NAME = "metrics.jsonl"
PACKAGES = {
    "tensorboard": "tensorboard or tensorboardX",
    "wandb": "wandb",
    "trackio": "trackio",
    **{name: name for name in ("comet_ml", "aim", "mlflow", "clearml", "dvclive", "swanlab")},
}
"""Accelerate's trackers, and the package of each; the first three are extras of ours."""
IMAGE_OPTIONS = {"tensorboard": {"dataformats": "NHWC"}}
EXTRAS = ("tensorboard", "wandb", "trackio")


class MetricsConfig(ComponentConfig):
    """Where numbers and pictures go besides metrics.jsonl and samples/."""

    name: Literal["metrics"] = "metrics"
    trackers: tuple[str, ...] = ()
    """tensorboard, wandb, trackio (each an extra), any other tracker of Accelerate's, or the dotted path of one."""
    project: str = "diffalign"
    """The trackers' name for what the run belongs to."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        for number, name in enumerate(self.trackers):
            if problem := _missing(name):
                yield f".trackers.{number}", problem


class Metrics(Hook):
    """One line an update, flushed at once: {"step": 1, "loss": ..., ...}. It comes after the hooks that add to it."""

    Config = MetricsConfig

    def __init__(self, config: MetricsConfig, around: Surroundings):
        self.config = config
        self.around = around
        self.path = around.output / FILE_NAME
        self.trackers: dict[str, Any] = {}
        self.blind: set[str] = set()
        self._file: TextIO | None = None

    def start(self, state: State) -> None:
        if not self.around.accelerator.is_main_process:
            return
        past = self.path if state.base is None else state.base.parent.parent / FILE_NAME  # another run's, if it is one
        kept = [line for line in read(past) if line["step"] <= state.step] if state.step else []
        if state.step and len({line["step"] for line in kept if line["step"]}) < state.step:
            print(f"{past} does not hold all updates up to {state.step}: {self.path} will have a gap there")
        write(self.path, "".join(_line(record) for record in kept))  # a crash may not cost the records that are kept
        self._file = self.path.open("a", encoding="utf-8")
        for name in self.config.trackers:
            self._attempt(name, self._open)
        if state.step == 0 and state.metrics:
            self.after_update(state)
        self._show(state)

    def after_update(self, state: State) -> None:
        if self._file is None:
            return
        try:
            self._file.write(_line({"step": state.step, **state.metrics}))
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"{self.path}: update {state.step} cannot be recorded ({error.strerror}). Make room; the same command "
                "goes on from the last checkpoint."
            ) from None
        numbers = {k: v for k, v in state.metrics.items() if isinstance(v, int | float)}
        for name, tracker in list(self.trackers.items()):
            self._attempt(name, lambda _, t=tracker: t.log(numbers, step=state.step))
        self._show(state)

    def _show(self, state: State) -> None:
        """Hands over what hooks have drawn at this step; a tracker that takes no pictures goes on with the numbers."""
        if not state.pictures:
            return
        import numpy as np
        from PIL import Image

        sheets = {name: np.asarray(Image.open(path).convert("RGB"))[None] for name, path in state.pictures.items()}
        state.pictures = {}
        for name, tracker in self.trackers.items():
            if name in self.blind or not hasattr(tracker, "log_images"):
                continue
            try:
                tracker.log_images(sheets, step=state.step, **IMAGE_OPTIONS.get(name, {}))
            except Exception as error:  # as below
                self.blind.add(name)
                print(f"tracker {name} gets no pictures, the numbers go on: {type(error).__name__}: {error}")

    def finish(self, state: State) -> None:
        for name, tracker in list(self.trackers.items()):
            self._attempt(name, lambda _, t=tracker: t.finish())
        if self._file is not None:
            with suppress(OSError):  # said when it was written
                self._file.close()
            self._file = None

    def _open(self, name: str) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        build = load_object(name) if ":" in name else LOGGER_TYPE_TO_CLASS.get(name)
        if build is None:
            raise UserError("there is none of that name")
        folder = [str(self.around.output)] if build.requires_logging_directory else []
        tracker = build(self.config.project, *folder)
        tracker.start()
        tracker.store_init_configuration(_flat(self.around.recipe))
        self.trackers[name] = tracker

    def _attempt(self, name: str, action: Any) -> None:
        try:
            action(name)
        except Exception as error:  # a tracker is somebody else's code and network: whatever it raises, the run goes on
            self.trackers.pop(name, None)
            print(f"tracker {name} is switched off, the run goes on: {type(error).__name__}: {error}")


def read(path: Any) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, without a last line that a crash cut short."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [_record(line, f"{path}: line {number}") for number, line in enumerate(lines[:-1], 1)]


def _record(line: str, where: str) -> dict[str, Any]:
    """What a line says of an update, whose number every record has."""
    try:
        record, said = json.loads(line), "it is no object with a whole number as its step"
    except (ValueError, RecursionError) as error:
        record, said = None, str(error)
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        raise UserError(f"{where} is no record of an update ({said}). Remove it.")
    return record


def _line(record: dict[str, Any]) -> str:
    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value  # JSON has no nan

    return json.dumps({key: plain(value) for key, value in record.items()}) + "\n"


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optim": {"lr": 1}} -> {"optim.lr": 1}: what trackers take as a configuration."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat


def _missing(name: str) -> str | None:
    """What stands in the way of a tracker before anything has begun."""
    if ":" in name:
        try:
            load_object(name)
        except RegistryError as error:
            return str(error)
        return None
    if name not in PACKAGES:
        known = ", ".join(PACKAGES)
        return f"there is no tracker {name}.{suggest(name, PACKAGES)} Known: {known}; or the dotted path of one."
    if any(importlib.util.find_spec(package) for package in PACKAGES[name].split(" or ")):
        return None
    wanted = f"diffalign[{name}]" if name in EXTRAS else name
    return f'{name} needs {PACKAGES[name]}, which is not installed. Run pip install "{wanted}", or remove it.'
