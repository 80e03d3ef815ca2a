"""The report: the model before and after training on the same unseen prompts and seeds, in numbers and in pictures.

"Before" is the policy's reference role, the same network with its adapter off. The prompts are read here once, when
everything has been chosen; the picture shows the first of them, whatever became of them.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from pydantic import BaseModel, Field, ValidationError, model_validator
from torch import Tensor

from align.data._readable import readers
from align.data.prompts import load_prompts, problems, words
from align.errors import UserError
from align.figures.picture import Cell, sheet, to_pil
from align.figures.repeats import told
from align.figures.statistics import Comparison, compare
from align.files.output import write, write_picture
from align.policy.painter import Painter
from align.registry import ComponentConfig, LabelledRewards
from align.sampling import SamplingConfig

PICTURE = "before_after.png"
FOLDER, SCORES = "report", "scores.json"


class EvaluateConfig(ComponentConfig):
    """On what the run is reported."""

    prompts: list[str] | str
    """As in data.prompts; none that training or a choice has seen (shapes:report)."""
    num_prompts: int = Field(256, ge=2)
    """The first so many of them. Differences of a few points need 1,000."""
    rewards: LabelledRewards = Field(default_factory=dict)
    """{label: reward} to report besides the rewards trained on; differentiable or not."""
    sampling: SamplingConfig | None = None
    """Default: as in training."""
    batch_size: int | None = Field(None, ge=1)
    """Images drawn at once. Default: as many as four megapixels hold, 1 to 64."""
    num_pictures: int = Field(16, ge=1)
    """Prompts shown in the picture, or all where there are fewer."""
    verdict: str | None = None
    """The reward whose score is drawn on each image; default: the last of those above, else the first trained on."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        judges = readers(recipe, {**self.rewards, **(recipe.get("rewards") or {})})
        yield from problems(self.prompts, ".prompts", self.num_prompts, judges)
        labels = [*recipe.get("rewards", {}), *self.rewards]
        if self.verdict is not None and self.verdict not in labels:
            yield ".verdict", f"is {self.verdict}, which is no reward here. Choose one of {', '.join(labels)}."


def asked(config: EvaluateConfig) -> str:
    """How many prompts, to stand before the word prompts: "256", or "1024 images of 383" where some repeat."""
    prompts = load_prompts(config.prompts, count=config.num_prompts, key="evaluate.prompts")
    return told(len(prompts), len(set(map(words, prompts))))


def evaluate(
    config: EvaluateConfig, painter: Painter, rewards: Any, output: Path, *, poll: Callable[[], None]
) -> dict[str, Comparison]:
    """{label: comparison} for each term of the composite `rewards`; writes the picture into `output`.

    `painter.policy` must hold the parameters to report. `poll` may raise between batches, to end early.
    """
    prompts = load_prompts(config.prompts, count=config.num_prompts, key="evaluate.prompts")
    scores: dict[str, dict[str, Tensor]] = {}
    images: dict[str, Tensor] = {}
    for name, role in (("before", "reference"), ("after", "result")):
        scores[name], images[name] = painter.score(
            role, prompts, rewards, stream="report", num_images=config.num_pictures, poll=poll
        )
    if painter.accelerator.is_main_process:
        label = config.verdict or list(scores["after"])[-1 if config.rewards else 0]
        judged = [(scores[name][label], images[name]) for name in ("before", "after")]
        write_picture(output / PICTURE, before_after(label, prompts, *judged))
        _write(output, label, prompts, scores, images)
    rows = [words(prompt) for prompt in prompts]
    return {label: compare(scores["before"][label], scores["after"][label], rows) for label in scores["after"]}


class Sides(BaseModel):
    """{reward: every prompt's score}, on both sides of training."""

    before: dict[str, list[float]]
    after: dict[str, list[float]]


class Told(BaseModel):
    """scores.json."""

    verdict: str
    prompts: list[str]
    scores: Sides

    @model_validator(mode="after")
    def _whole(self) -> Self:
        for name, side in self.scores:
            if self.verdict not in side:
                raise ValueError(f"{name} has no scores of {self.verdict}, its verdict")
            if wrong := [label for label, scores in side.items() if len(scores) != len(self.prompts)]:
                raise ValueError(f"{name} has not one score of {wrong[0]} for each prompt")
        return self


def read(output: Path) -> Told | None:
    """What a run's report is of; None where its recipe asked for none."""
    path = output / FOLDER / SCORES
    if not path.is_file():
        return None
    try:
        return Told.model_validate_json(path.read_bytes())
    except ValidationError as error:
        said = f"{error.errors()[0]['msg']}, at {'.'.join(map(str, error.errors()[0]['loc'])) or 'its start'}"
        raise UserError(f"{path}: holds no scores that a run has written ({said}). Remove it to do without.") from None


def _write(
    output: Path,
    label: str,
    prompts: Sequence[str],
    scores: Mapping[str, Mapping[str, Tensor]],
    images: Mapping[str, Tensor],
) -> None:
    """report/: every prompt's scores, and the first pictures one by one."""
    folder = output / FOLDER
    told = {name: {k: v.tolist() for k, v in scores[name].items()} for name in scores}
    written = {"verdict": label, "prompts": list(prompts), "scores": told}
    write(folder / SCORES, json.dumps(written))
    for name in images:
        for number, pixels in enumerate(images[name]):
            write_picture(folder / f"{number:04d}-{name}.png", to_pil(pixels))


def before_after(
    label: str, prompts: Sequence[str], before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]
) -> Image.Image:
    """Each prompt's two images with the verdict of `label` on each; before and after are (scores, images (k, ...)).

    A reward that says 0 or 1 is drawn as no or yes; of any other the sheet says whether it rose.
    """
    yes_or_no = bool(torch.isin(torch.cat([before[0], after[0]]), torch.tensor([0.0, 1.0])).all())
    groups = []
    for prompt, old, new, *pictures in zip(prompts, before[0], after[0], before[1], after[1], strict=False):
        if yes_or_no:
            said = [(f"{label}: {'yes' if score else 'no'}", bool(score)) for score in (old, new)]
        else:
            told = [f"{float(score):.3f}" for score in (old, new)]
            rose = None if told[0] == told[1] else bool(new > old)  # what reads alike has neither risen nor fallen
            said = [(f"{label} {told[0]}", None), (f"{label} {told[1]}", rose)]
        titled = zip(pictures, ("before", "after"), said, strict=True)
        groups.append((prompt, [Cell(picture, title, *verdict) for picture, title, verdict in titled]))
    return sheet(groups, columns=4)
