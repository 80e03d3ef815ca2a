"""Preference pairs from a model and a judge: n images a prompt, scored, paired and labelled, as a folder of PNG files.

    best_worst   the image with the highest score against the one with the lowest: a pair a prompt
    all          every two images of a prompt: n (n - 1)/2 pairs

    P(a preferred to b) = sigmoid((score_a - score_b)/temperature)      Bradley & Terry 1952; temperature 0: the better

The images are those of the model without its adapter, drawn as the recipe's sampling block says. Blocks of prompts are
shared among the processes; a block that was finished is not made again, so that a run that was ended goes on.
"""

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from align.data._pairs import FILE_NAME
from align.data._workplace import Workplace
from align.data.prompts import load_prompts, problems
from align.errors import UserError
from align.files import code
from align.models import _identity
from align.registry import ComponentConfig, LabelledRewards
from align.sampling import OF_GRADIENTS
from samplers import generator

SETTINGS, PARTS, IMAGES = "settings.json", "parts", "images"
"""Of the sampling block, what an image depends on; the rest is about gradients."""


class MakeConfig(ComponentConfig):
    """What the pairs are made of."""

    prompts: list[str] | str
    """As in data.prompts of other recipes."""
    num_prompts: int | None = Field(default=None, ge=1)
    """The first so many of them; default: all."""
    num_images: int = Field(default=4, ge=2)
    """Images a prompt."""
    rewards: LabelledRewards
    """{label: reward}: the judge is their weighted sum."""
    choose: Literal["best_worst", "all"] = "best_worst"
    """Which of a prompt's images are compared."""
    temperature: float = Field(default=0.0, ge=0)
    """Of the Bradley-Terry noise in the labels, in units of the judge's score; 0: none."""
    margin: float = Field(default=0.0, ge=0)
    """Leave out pairs whose scores are closer than this."""
    ties: Literal["drop", "keep"] = "drop"
    """Pairs of equal scores: left out, or written with "tie": true (for a preference model; DPO skips them)."""
    batch_size: int = Field(default=64, ge=2)
    """Images drawn at once."""

    @model_validator(mode="after")
    def _whole(self) -> "MakeConfig":
        if not self.rewards:
            raise ValueError("rewards are missing: they are the judge. Add one, such as `rewards: {gold: {}}`.")
        return self

    def problems(self, key: str) -> Iterator[tuple[str, str]]:
        yield from problems(self.prompts, f"{key}.prompts")


def finished(folder: Path) -> bool:
    """Whether the pairs in `folder` are all there."""
    return (folder / FILE_NAME).is_file()


def make(config: MakeConfig, folder: Path, around: Workplace) -> int:
    """Writes pairs.jsonl and its images into `folder`, with all processes together; returns the number of pairs."""
    accelerator = around.accelerator
    if accelerator.is_main_process:
        _claim(config, folder, around)
    accelerator.wait_for_everyone()
    prompts = load_prompts(config.prompts, count=config.num_prompts, key="data.make.prompts")
    length = max(1, config.batch_size // config.num_images)
    starts = list(range(0, len(prompts), length))
    parts = [folder / PARTS / f"{start:07d}.jsonl" for start in starts]
    around.say(f"pairs: {len(prompts)} prompts, {config.num_images} images each, into {folder}")
    mine = [
        i for i in range(accelerator.process_index, len(starts), accelerator.num_processes) if not parts[i].exists()
    ]
    rewards = around.build_rewards(config.rewards) if mine else None
    for i in around.progress("pairs made", mine):
        block = prompts[starts[i] : starts[i] + length]
        _write(parts[i], list(_block(config, folder, around, rewards, starts[i], block)))
    accelerator.wait_for_everyone()
    lines = [line for part in parts for line in part.read_text(encoding="utf-8").splitlines()]
    if not lines:
        raise UserError(
            f"{folder}: no pair is left of {len(prompts)} prompts: every two images scored alike or closer than "
            f"margin={config.margin}. Lower data.make.margin, or give more images a prompt."
        )
    if accelerator.is_main_process:
        _write(folder / FILE_NAME, lines)
    accelerator.wait_for_everyone()
    return len(lines)


def check(config: MakeConfig, folder: Path, around: Workplace, *, whole: bool) -> None:
    """Raises UserError where the folder's pairs are of other settings; one without word of its settings is the user's.

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
    now = _settings(config, around)
    found = [key for key in now if before.get(key) != now[key]]
    if whole and found and not any(key.startswith("data.make") for key in found):
        other = ", ".join(found)
        around.say(f"data.pairs={folder}: its pairs were made with another {other}, and are used as they are")
    elif found:
        raise UserError(
            f"data.pairs={folder} holds pairs of other settings ({', '.join(found)}; see {file}). Set them as they "
            "were, set data.pairs to another folder, or remove this one."
        )


def _settings(config: MakeConfig, around: Workplace) -> dict[str, Any]:
    """All that the pairs depend on, by what the user may have changed."""
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


def _claim(config: MakeConfig, folder: Path, around: Workplace) -> None:
    """The folder is for pairs of these settings only."""
    check(config, folder, around, whole=False)
    try:
        for name in (PARTS, IMAGES):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"data.pairs={folder}: cannot be made ({error.strerror}). Choose another folder.") from None
    (folder / SETTINGS).write_text(json.dumps(_settings(config, around), indent=1), encoding="utf-8")


def _block(
    config: MakeConfig, folder: Path, around: Workplace, rewards: Any, start: int, prompts: list[str]
) -> Iterator[str]:
    """The lines of prompts number `start` and following; writes the images that they name."""
    n = config.num_images
    repeated = [prompt for prompt in prompts for _ in range(n)]
    images = around.painter.images("reference", repeated, range(start * n, start * n + len(repeated)), "pairs")
    with torch.no_grad():
        totals = rewards.combine(rewards(images, repeated)).double().cpu()
    for number, prompt in enumerate(prompts):
        rows = slice(number * n, (number + 1) * n)
        for a, b in _chosen(config, totals[rows]):
            record = _labelled(config, totals[rows], a, b, around.seed, start + number)
            if record is not None:
                names = {side: f"{IMAGES}/{start + number:07d}-{record[side]}.png" for side in ("winner", "loser")}
                for side, name in names.items():
                    _save(images[rows][record[side]], folder / name)
                yield json.dumps({"prompt": prompt, **record, **names})


def _chosen(config: MakeConfig, totals: Tensor) -> list[tuple[int, int]]:
    if config.choose == "all":
        return list(itertools.combinations(range(len(totals)), 2))
    best = int(totals.argmax())
    worst = int(totals.argmin())
    return [(best, worst if worst != best else (best + 1) % len(totals))]  # all alike: a tie of two images


def _labelled(config: MakeConfig, totals: Tensor, a: int, b: int, seed: int, prompt: int) -> dict[str, Any] | None:
    """{winner, loser: numbers of the images; margin: by how much the judge likes the winner more; tie}, or None."""
    margin = float(totals[a] - totals[b])
    tie = margin == 0
    if (tie and config.ties == "drop") or (not tie and abs(margin) < config.margin):
        return None
    prefers_a = margin >= 0
    if config.temperature and not tie:
        draw = torch.rand((), generator=generator(seed, f"label/{a}/{b}", prompt), dtype=torch.float64)
        prefers_a = float(draw) < float(torch.sigmoid(torch.tensor(margin / config.temperature, dtype=torch.float64)))
    winner, loser = (a, b) if prefers_a else (b, a)
    return {"winner": winner, "loser": loser, "margin": margin if prefers_a else -margin, "tie": tie}


def _save(pixels: Tensor, path: Path) -> None:
    from PIL import Image

    data = (pixels.detach().float().cpu() * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(data).save(path)


def _write(path: Path, lines: list[str]) -> None:
    """All of the file or nothing of it."""
    temporary = path.with_suffix(".writing")
    temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    os.replace(temporary, path)
