"""report.html of noise optimisation: each image before and after with path and scores, and the table, in one file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.figures import charts, pages
from align.files.output import write as write_file
from align.noise import table as reno_table
from align.noise.files import Outcome

FILE_NAME = "report.html"
MOST = 64  # images shown


def write(folder: Path, outcomes: Sequence[Outcome]) -> Path:
    """FOLDER/report.html from the images and lines that are there."""
    better = sum(outcome.best["total"] > outcome.start["total"] for outcome in outcomes)
    text = pages.page(
        "noise.html",
        title=f"{outcomes[0].method} on {outcomes[0].model}" if outcomes else "no images",
        facts={"images": str(len(outcomes)), "better than plain sampling": str(better)} if outcomes else {},
        compared=reno_table.compared(outcomes),
        images=[_image(folder, outcome) for outcome in outcomes[:MOST]],
    )
    return write_file(folder / FILE_NAME, text)


def _image(folder: Path, outcome: Outcome) -> dict[str, Any]:
    path = folder / outcome.file
    start, moving = path.with_name(f"{path.stem}-start.png"), path.with_suffix(".gif")
    won = outcome.best["total"] > outcome.start["total"]
    shots = [{"name": "plain sampling", "image": pages.picture(start, "plain sampling"), "wins": False}]
    shots.append({"name": outcome.method, "image": pages.picture(path, outcome.method), "wins": won})
    if moving.is_file():
        shots.append({"name": "the path", "image": pages.as_it_is(moving, "the path", pixels=True), "wins": False})
    curve = {"reward": [(float(i), reward) for i, reward in enumerate(outcome.path) if reward is not None]}
    return {
        "prompt": outcome.prompt,
        "shots": shots,
        "curve": charts.lines(curve, marks={float(outcome.iteration): f"update {outcome.iteration}: the best"}),
        "scores": [
            (label, outcome.start[label], score) for label, score in outcome.best.items() if label in outcome.start
        ],
        "told": f"{outcome.told()}, seed {outcome.seed}, image {outcome.index}",
    }
