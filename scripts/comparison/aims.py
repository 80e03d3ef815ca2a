"""Methods with an aim of their own, measured by it: what is to change, what is to stay, read from the pixels.

fairness: the sizes, and fairness-colours: the colours, that circles without either in their prompt get, as the strict
judge reads them; unlearn: how many pictures for prompts with a star show one; srpo: how many show something large where
no size is asked for. What is to stay: the judge of report prompts.
"""

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

import align
from align.data.prompts import load_prompts
from align.files.output import write as write_text
from align.policy.painter import Painter
from align.shapes.captions import SIZES
from align.shapes.judge import Reading, read
from align.shapes.scene import COLOURS
from align.training.evaluate import before_after
from scripts.comparison.curves import Chapter, train
from scripts.comparison.methods import AIMS
from scripts.comparison.parts import policy

FOLDER, SHOWN, SHEET = "aims", "shown.json", "shown.png"
PARTS = ("reference", "train")
CIRCLES, OTHERS, PICTURED = 1000, 256, 16


@dataclass(frozen=True)
class Aim:
    """What is drawn to see whether the aim is met, what is read from a picture, and which prompts are to stay; for the
    sheet, what a picture that meets the aim is called."""

    prompts: Callable[[], list[str]]
    shown: Callable[[Reading], Any]
    held: Callable[[str], bool]
    called: str
    met: Callable[[Reading], bool]


def circle(reading: Reading) -> list[str | None]:
    """[shape, colour, size] of the largest object; None each of an empty picture."""
    found = max(reading.objects, key=lambda o: o.radius, default=None)
    return [None, None, None] if found is None else [found.shape, found.colour, found.size]


def star(reading: Reading) -> bool:
    return any(o.shape == "star" for o in reading.objects)


def with_star(prompt: str) -> bool:
    return "star" in prompt


def large(reading: Reading) -> bool:
    return max(reading.objects, key=lambda o: o.radius).size == "large" if reading.objects else False


def sized(prompt: str) -> bool:
    return any(size in prompt for size in SIZES)


def coloured(prompt: str) -> bool:
    return any(colour in prompt for colour in COLOURS)


def unsized(prompt: str) -> bool:
    return not sized(prompt)


def _reported(chosen: Callable[[str], bool]) -> list[str]:
    report = load_prompts("shapes:report", count=8 * OTHERS, key="prompts")
    return list(itertools.islice(filter(chosen, report), OTHERS))


OF = {
    "fairness": Aim(lambda: ["a circle"] * CIRCLES, circle, sized, "large", large),
    "fairness-colours": Aim(
        lambda: ["a circle"] * CIRCLES, circle, coloured, "circle", lambda reading: circle(reading)[0] == "circle"
    ),
    "unlearn": Aim(
        lambda: _reported(with_star), star, lambda prompt: not with_star(prompt), "no star", lambda r: not star(r)
    ),
    "srpo": Aim(lambda: _reported(unsized), large, unsized, "large", large),
}


def measure(output: Path, name: str, seed: int, *, prompts: int) -> None:
    """Trains, reports, and reads what base and trained draw; what is there is not made again."""
    run = train(output, Chapter(FOLDER, "", AIMS), name, seed, prompts=prompts, panel=0)
    path, sheet = run.output / SHOWN, run.output / SHEET
    if path.is_file() and sheet.is_file():
        return
    recipe = align.load_recipe(str(run.output / "recipe.yaml"), [f"adapter.init={run.output / 'adapter'}"])
    painter = Painter(policy(recipe, seed), recipe.sampling, Accelerator(cpu=True), seed=seed)
    aim, asked = OF[name], OF[name].prompts()
    first = [_read(painter, role, asked[:PICTURED]) for role in PARTS]
    told = [(torch.tensor([float(aim.met(one)) for one in readings]), pictures) for readings, pictures in first]
    before_after(aim.called, asked, *told).save(sheet, optimize=True)
    if not path.is_file():
        told_of = {role: [aim.shown(reading) for reading in _read(painter, role, asked)[0]] for role in PARTS}
        write_text(path, json.dumps(told_of))


def _read(painter: Painter, role: str, prompts: Sequence[str]) -> tuple[list[Reading], torch.Tensor]:
    """What the pictures show, and the pictures."""
    found, drawn = [], []
    for start in range(0, len(prompts), painter.batch_size):
        rows = range(start, min(start + painter.batch_size, len(prompts)))
        drawn.append(painter.images(role, [prompts[i] for i in rows], list(rows), "shown"))
        found += read(drawn[-1])
    return found, torch.cat(drawn)
