"""Pictures of the same prompts at the same seeds: samples/step-000050.png, before training, now and then, at its end.

The metrics hook hands them to the trackers, and the report shows them in a row.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from align.data._readable import readers
from align.data.prompts import load_prompts, problems
from align.figures.picture import Cell, sheet
from align.files.output import write_picture
from align.hooks._base import Hook, State, Surroundings
from align.registry import ComponentConfig


class SamplesConfig(ComponentConfig):
    """What is drawn, and how often."""

    name: Literal["samples"] = "samples"
    prompts: list[str] | str
    """As in data.prompts: a list, a file, or shapes:select."""
    num_images: int = Field(16, ge=1)
    """The first so many of the prompts, one image each."""
    every: int = Field(50, ge=1)
    """Updates between two pictures."""
    columns: int = Field(4, ge=1)
    """Of a sheet."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield from problems(self.prompts, ".prompts", self.num_images, readers(recipe))


class Samples(Hook):
    """Draws with the moving average where the run keeps one."""

    Config = SamplesConfig
    first = "samples: pictures before the first update"

    def __init__(self, config: SamplesConfig, around: Surroundings):
        self.config = config
        self.around = around
        self.prompts = load_prompts(config.prompts, count=config.num_images, key="hooks.samples.prompts")

    def start(self, state: State) -> None:
        if state.step == 0:
            self._draw(state)

    def after_update(self, state: State) -> None:
        if state.step % self.config.every == 0 or state.step == state.num_updates:
            self._draw(state)

    def _draw(self, state: State) -> None:
        if not self.around.accelerator.is_main_process:
            return
        with state.average():
            images = self.around.painter.images("result", self.prompts, range(len(self.prompts)), "samples")
        groups = [(p, [Cell(image, f"step {state.step}")]) for p, image in zip(self.prompts, images, strict=True)]
        path = self.around.output / "samples" / f"step-{state.step:06d}.png"
        state.pictures["samples"] = write_picture(path, sheet(groups, columns=self.config.columns))
