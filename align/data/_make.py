"""Judged pictures from a model: n images a prompt, scored by a judge, and written as a folder of PNG files with a table
of pairs (align/data/_make_pairs.py) or of labels (align/data/_make_labels.py).

The images are those of the model without its adapter, drawn as the recipe's sampling block says. Blocks of prompts are
shared among the processes; a block that was finished is not made again, so that a run that was ended goes on.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from align.data._dataset_config import SETTINGS
from align.data._readable import readers
from align.data._workplace import Workplace
from align.data.prompts import load_prompts, problems
from align.errors import UserError
from align.files import code
from align.files.output import write, write_picture
from align.models import _identity
from align.registry import ComponentConfig, LabelledRewards
from align.sampling import OF_GRADIENTS
from rewards._numerals import counted

PARTS, IMAGES = "parts", "images"
"""Of the sampling block, what an image depends on; the rest is about gradients."""


class JudgedConfig(ComponentConfig):
    """What is drawn and judged; how a table's rows are made of it is the subclass's."""

    noun: ClassVar[str] = "pairs"
    """What the rows are called; also the setting of `data` that says where they go."""
    file_name: ClassVar[str] = ""
    images: ClassVar[tuple[str, ...]] = ()
    """Keys of a record that hold the number of an image, and in the table its file."""

    prompts: list[str] | str
    """As in data.prompts of other recipes."""
    num_prompts: int | None = Field(default=None, ge=1)
    """The first so many of them; default: all."""
    num_images: int = Field(default=4, ge=2)
    """Images a prompt."""
    rewards: LabelledRewards
    """{label: reward}: the judge is their weighted sum."""
    batch_size: int = Field(default=64, ge=2)
    """Images drawn at once."""

    @model_validator(mode="after")
    def _whole(self) -> "JudgedConfig":
        if not self.rewards:
            raise ValueError("rewards are missing: they are the judge. Add one, such as `rewards: {gold: {}}`.")
        return self

    def problems(self, key: str) -> Iterator[tuple[str, str]]:
        yield from problems(self.prompts, f"{key}.prompts", self.num_prompts, readers({}, self.rewards))

    def records(self, totals: Tensor, seed: int, prompt: int) -> Iterator[dict[str, Any]]:
        """What is said of prompt number `prompt`, whose images the judge scores `totals`, (n,) float64."""
        raise NotImplementedError

    def table(self, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The table's rows, from the records of all prompts."""
        return list(records)

    def why_empty(self) -> str:
        """Why no row may be left, and what to do."""
        raise NotImplementedError


def finished(config: JudgedConfig, folder: Path) -> bool:
    """Whether the rows in `folder` are all there."""
    return (folder / config.file_name).is_file()


def make(config: JudgedConfig, folder: Path, around: Workplace) -> int:
    """Writes the table and its images into `folder`, with all processes together; returns the number of rows."""
    accelerator = around.accelerator
    if accelerator.is_main_process:
        _claim(config, folder, around)
    accelerator.wait_for_everyone()
    prompts = load_prompts(config.prompts, count=config.num_prompts, key="data.make.prompts")
    length = max(1, config.batch_size // config.num_images)
    starts = list(range(0, len(prompts), length))
    parts = [folder / PARTS / f"{start:07d}.jsonl" for start in starts]
    around.say(
        f"{config.noun}: {counted(len(prompts), 'prompt')}, {counted(config.num_images, 'image')} each, into {folder}"
    )
    mine = [
        i for i in range(accelerator.process_index, len(starts), accelerator.num_processes) if not parts[i].exists()
    ]
    rewards = around.build_rewards(config.rewards) if mine else None
    for i in around.progress(f"{config.noun} made", mine):
        block = prompts[starts[i] : starts[i] + length]
        _write(parts[i], list(_block(config, folder, around, rewards, starts[i], block)))
    accelerator.wait_for_everyone()
    made = [json.loads(line) for part in parts for line in part.read_text(encoding="utf-8").splitlines()]
    lines = [json.dumps(record) for record in config.table(made)]
    if not lines:
        raise UserError(f"{folder}: nothing is left of {counted(len(prompts), 'prompt')}: {config.why_empty()}")
    if accelerator.is_main_process:
        _write(folder / config.file_name, lines)
    accelerator.wait_for_everyone()
    return len(lines)


def check(config: JudgedConfig, folder: Path, around: Workplace, *, whole: bool) -> None:
    """Raises UserError where the folder's rows are of other settings; one without word of its settings is the user's.

    With `whole` all are there, and may serve several recipes: of their data.make must be the same, and what else they
    were made with (model, sampling, seed) is said where it is another.
    """
    file = folder / SETTINGS
    try:
        before: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if "make" in before:  # as it was written before these keys
        return
    now, noun = _settings(config, around), config.noun
    found = [key for key in now if before.get(key) != now[key]]
    if whole and found and not any(key.startswith("data.make") for key in found):
        other = ", ".join(found)
        around.say(f"data.{noun}={folder}: its {noun} were made with another {other}, and are used as they are")
    elif found:
        raise UserError(
            f"data.{noun}={folder} holds {noun} of other settings ({', '.join(found)}; see {file}). Set them as they "
            f"were, set data.{noun} to another folder, or remove this one."
        )


def _settings(config: JudgedConfig, around: Workplace) -> dict[str, Any]:
    """All that the rows depend on, by what the user may have changed."""
    model = around.model
    drawn = around.sampling.model_dump(mode="json", exclude=set(OF_GRADIENTS))
    prompts = load_prompts(config.prompts, count=config.num_prompts, key="data.make.prompts")
    make = config.model_dump(mode="json", exclude={"batch_size", "prompts", "num_prompts"})
    judging = code.digests(make["rewards"])
    return {
        **({"data.make.rewards, their code": judging} if judging else {}),
        **{f"data.make.{key}": value for key, value in make.items()},
        "data.make.prompts": _identity.digest(prompts),
        "model": [_identity.network(model, around.policy.autocast()), _identity.text(model.text)],
        "model.vae": _identity.codec(model.codec),
        **{f"sampling.{key}": value for key, value in drawn.items()},
        "train.seed": around.seed,
    }


def _claim(config: JudgedConfig, folder: Path, around: Workplace) -> None:
    """The folder is for rows of these settings only."""
    check(config, folder, around, whole=False)
    try:
        for name in (PARTS, IMAGES):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"data.{config.noun}={folder}: cannot be made ({error.strerror}). Choose another folder."
        ) from None
    write(folder / SETTINGS, json.dumps(_settings(config, around), indent=1))


def _block(
    config: JudgedConfig, folder: Path, around: Workplace, rewards: Any, start: int, prompts: list[str]
) -> Iterator[str]:
    """The lines of prompts number `start` and following; writes the images that they name."""
    n = config.num_images
    repeated = [prompt for prompt in prompts for _ in range(n)]
    images = around.painter.images("reference", repeated, range(start * n, start * n + len(repeated)), "pairs")
    with torch.no_grad():
        totals = rewards.combine(rewards(images, repeated)).double().cpu()
    for number, prompt in enumerate(prompts):
        rows = slice(number * n, (number + 1) * n)
        for record in config.records(totals[rows], around.seed, start + number):
            names = {key: f"{IMAGES}/{start + number:07d}-{record[key]}.png" for key in config.images}
            for key, name in names.items():
                _save(images[rows][record[key]], folder / name)
            yield json.dumps({"prompt": prompt, **record, **names})


def _save(pixels: Tensor, path: Path) -> None:
    from PIL import Image

    data = (pixels.detach().float().cpu() * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    write_picture(path, Image.fromarray(data))


def _write(path: Path, lines: list[str]) -> None:
    write(path, "".join(f"{line}\n" for line in lines))
