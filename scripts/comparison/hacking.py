"""docs/lab/hacking.md: runs that their reward misleads, with the guard and, the same, without."""

import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from align.figures import charts
from align.hooks import metrics
from align.reports import summary
from scripts.comparison import kept
from scripts.comparison.figures import lines
from scripts.comparison.methods import HACKED

TITLE = """# What a reward is hacked by

{verdict}

Written by `python scripts/compare.py write` from measured runs; not edited by hand.

Runs of `draft/shapes_overoptimised` (clip, eye and pick-slower at half its rate, clip and eye twice as long; those
called steady at a quarter of it, four times as long) and `nft/shapes` on one reward, one seed each;
`scripts/comparison/methods.py` says how. One that ends at its best was not hacked.
The guard, which sees neither judge nor gold, holds another reward out. Judge and gold: 96 select prompts.
"""
APART = 0.05
"""Of what the trained reward had gained: one that loses more of it again has come apart."""
GOLD = re.compile(r"is ([\d.-]+) at its best and ([\d.-]+) at the end.*keeps update \d+: gold ([\d.-]+),", re.DOTALL)
"""Of a section: gold at its best, at the end, and where the guard chooses."""


def write(output: Path, page: Path) -> Path | None:
    """Writes the page and its figures from the runs that have ended; sections whose runs are elsewhere stay as they
    are. None where nothing has ended."""
    images = page.parent / "img"
    images.mkdir(parents=True, exist_ok=True)
    found = {name: told for name in HACKED if (told := _hacked(output / "overoptimised" / name, name, images))}
    if not found:
        return None
    known = kept.sections(kept.text(page)) | found
    texts = [known[name].strip("\n") for name in HACKED if name in known]
    figures = [tuple(map(float, match.groups())) for text in texts if (match := GOLD.search(text))]
    names = [name for name in HACKED if name in known]
    verdict = (
        f"**Verdict.** Gold at the end, less its best on the way: {_each(names, [e - b for b, e, _ in figures])};\n"
        f"where the guard chooses: {_each(names, [c - b for b, _, c in figures])}."
    )
    page.write_text("\n\n".join([TITLE.format(verdict=verdict).rstrip("\n"), *texts]) + "\n", encoding="utf-8")
    return page


def _each(found: Iterable[str], values: Iterable[float]) -> str:
    return ", ".join(f"{name} {value:+.3f}" for name, value in zip(found, values, strict=True))


def _hacked(folder: Path, name: str, images: Path) -> str | None:
    """The section of a reward; None where its free run has not ended. Without a guarded one the guard's choice in the
    free one is told, in which it ends nothing."""
    guarded, free = (folder / kind for kind in ("guarded", "free"))
    if not (free / summary.FILE_NAME).is_file():
        return None
    guarded = guarded if (guarded / summary.FILE_NAME).is_file() else free
    found, records = summary.read(guarded), metrics.read(free / metrics.FILE_NAME)
    trained = [(r["step"], r[key]) for r in records if (key := _reward(r))]
    curves = {"trained reward": charts.running_mean(trained)}
    curves |= {
        label: [(r["step"], r[key]) for r in records if key in r]
        for label, key in (("held-out reward", "guard/score"), ("gold", "panel/gold"), ("judge", "panel/judge"))
    }
    last = curves["gold"][-1][0]
    marks = {float(x): name for x, name in ((found.chosen_update, "kept"), (found.num_updates, "stopped")) if x < last}
    drawn = {label: _own_range(points) for label, points in curves.items()}
    (images / f"hacking-{name}.svg").write_text(lines(drawn, "update", marks), encoding="utf-8")
    gold, judge, chosen = dict(curves["gold"]), dict(curves["judge"]), found.chosen_update
    reward = {step: _at(curves["trained reward"], max(step, trained[0][0])) for step in gold}
    top = max(reward, key=lambda step: reward[step])
    fell = reward[top] - reward[last] > APART * (reward[top] - reward[min(reward)])
    best = {"gold": max(gold.values()), "judge": max(judge.values())}
    ended = f"ends the run after update {found.num_updates}" if found.num_updates < last else "lets the run go on"
    ended = "watches alone" if guarded is free else ended
    text = (
        f"## {name}\n\n"
        f"Gold utility starts at {gold[0]:.3f}, is {best['gold']:.3f} at its best and {gold[last]:.3f} at the end; "
        f"the judge passes {judge[0]:.0%}, {best['judge']:.0%} and {judge[last]:.0%}. The guard {ended} "
        f"and keeps update {chosen}: gold {gold[chosen]:.3f}, judge {judge[chosen]:.0%}. "
        f"The trained reward (running mean) is {reward[chosen]:.3f} there, {reward[top]:.3f} at its highest (update "
        f"{top}: gold {gold[top]:.3f}, judge {judge[top]:.0%}) and {reward[last]:.3f} at the end"
        f"{': it fell too, so that the run came apart' if fell else ''}.\n\n"
        f"![{name}: each curve on its own range](img/hacking-{name}.svg)\n"
    )
    if sheets := sorted((free / "samples").glob("*.png")):
        shutil.copyfile(sheets[-1], images / f"hacking-{name}.png")
        text += f"\n![{name}: the last pictures of the unguarded run](img/hacking-{name}.png)\n"
    return text


def _reward(record: Mapping[str, Any]) -> str | None:
    """What one reward is called in the metrics: its name, and where several may be put together, total."""
    return next((key for key in ("reward/total", *record) if key.startswith("reward/") and key in record), None)


def _at(points: charts.Points, x: float) -> float:
    """The last value up to x."""
    return [y for place, y in points if place <= x][-1]


def _own_range(points: charts.Points) -> list[tuple[float, float]]:
    low, high = min(y for _, y in points), max(y for _, y in points)
    return [(x, (y - low) / ((high - low) or 1.0)) for x, y in points]
