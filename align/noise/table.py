"""The table of a comparison: plain sampling, best-of at equal cost in two currencies, ReNO; and how sure it is."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from align.data.prompts import words
from align.figures.statistics import interval, paired
from align.files.output import write as write_file
from align.noise.files import Outcome
from rewards._numerals import counted

FILE_NAME = "table.md"
COLUMNS = {
    "start": "plain sampling",
    "seconds": "best of n, same seconds",
    "forwards": "best of n, same forwards",
    "best": "ReNO",
}


class Compared(NamedTuple):
    """What is said of images that best-of has followed."""

    tables: list[list[list[str]]]
    """The rows of each, its head first: the mean of every score with its 95 % interval over distinct prompts; then
    ReNO less each other column, paired by image."""
    note: str


def compared(outcomes: Sequence[Outcome]) -> Compared | None:
    """None where fewer than two images have been compared."""
    found = [outcome for outcome in outcomes if outcome.baselines]
    if len(found) < 2:
        return None
    labels = [k for k in found[0].best if all(k in scores for o in found for scores in _columns(o).values())]
    values = {
        column: {label: torch.tensor([_columns(o)[column][label] for o in found]).double() for label in labels}
        for column in COLUMNS
    }
    drawn = {name: sum(o.baselines[name]["candidates"] for o in found) / len(found) for name in ("seconds", "forwards")}
    asked = [words(outcome.prompt) for outcome in found]
    others = list(COLUMNS)[:-1]
    means = [[k, *(str(interval(values[c][k], asked)) for c in COLUMNS)] for k in labels]
    less = [[k, *(str(paired(values["best"][k] - values[c][k], asked)) for c in others)] for k in labels]
    note = (
        f"{counted(len(found), 'image')} of {counted(len(set(asked)), 'prompt')}, "
        f"{counted(found[0].iterations, 'iteration')}; total is what was maximised "
        f"({', '.join(f'{label} x {weight:g}' for label, weight in found[0].rewards.items())}). Best of n drew "
        f"{drawn['seconds']:.0f} candidates an image in the same seconds and {drawn['forwards']:.0f} at the same "
        "forward-equivalents. Brackets: 95 % intervals over prompts; differences are paired by image."
    )
    heads = ["score", *COLUMNS.values()], ["ReNO less", *(COLUMNS[column] for column in others)]
    return Compared([[heads[0], *means], [heads[1], *less]], note)


def table(outcomes: Sequence[Outcome]) -> str:
    """The same as Markdown; "" where there is nothing to compare."""
    found = compared(outcomes)
    if found is None:
        return ""
    lines = []
    for head, *rows in found.tables:
        lines += [" | ".join(["", *head, ""]).strip(), "|---" * len(head) + "|"]
        lines += [*(" | ".join(["", *row, ""]).strip() for row in rows), ""]
    return "\n".join([*lines, found.note]) + "\n"


def write(folder: Path, outcomes: Sequence[Outcome]) -> Path | None:
    """table.md, if there is anything to compare."""
    text = table(outcomes)
    if not text:
        return None
    return write_file(folder / FILE_NAME, text)


def _columns(outcome: Outcome) -> dict[str, dict[str, float]]:
    return {"start": outcome.start, **outcome.baselines, "best": outcome.best}
