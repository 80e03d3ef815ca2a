"""The table of a comparison: plain sampling, best-of at equal cost in two currencies, ReNO; and how sure it is."""

from collections.abc import Sequence
from pathlib import Path

import torch

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


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: the mean of every score with its 95 % interval, then ReNO less each other column, paired by image."""
    compared = [outcome for outcome in outcomes if outcome.baselines]
    if len(compared) < 2:
        return ""
    labels = [k for k in compared[0].best if all(k in scores for o in compared for scores in _columns(o).values())]
    values = {
        column: {label: torch.tensor([_columns(o)[column][label] for o in compared]).double() for label in labels}
        for column in COLUMNS
    }
    drawn = {
        name: sum(o.baselines[name]["candidates"] for o in compared) / len(compared) for name in ("seconds", "forwards")
    }
    lines = [
        "| score | " + " | ".join(COLUMNS.values()) + " |",
        "|---" * (1 + len(COLUMNS)) + "|",
        *(f"| {k} | " + " | ".join(str(interval(values[c][k])) for c in COLUMNS) + " |" for k in labels),
        "",
        "| ReNO less | " + " | ".join(list(COLUMNS.values())[:-1]) + " |",
        "|---" * len(COLUMNS) + "|",
        *(
            f"| {k} | " + " | ".join(str(paired(values["best"][k] - values[c][k])) for c in list(COLUMNS)[:-1]) + " |"
            for k in labels
        ),
        "",
        f"{counted(len(compared), 'image')}, {counted(compared[0].iterations, 'iteration')}; `total` is what was "
        f"maximised ({', '.join(f'{label} x {weight:g}' for label, weight in compared[0].rewards.items())}). Best of n "
        f"drew {drawn['seconds']:.0f} candidates an image in the same seconds and {drawn['forwards']:.0f} at the same "
        "forward-equivalents. Brackets: 95 % intervals over images; differences are paired.",
    ]
    return "\n".join(lines) + "\n"


def write(folder: Path, outcomes: Sequence[Outcome]) -> Path | None:
    """table.md, if there is anything to compare."""
    text = table(outcomes)
    if not text:
        return None
    return write_file(folder / FILE_NAME, text)


def _columns(outcome: Outcome) -> dict[str, dict[str, float]]:
    return {"start": outcome.start, **outcome.baselines, "best": outcome.best}
