"""What a reward is hacked by: runs that it misleads, with the guard and, the same, without."""

import shutil
from pathlib import Path

from align.figures import charts
from align.hooks import metrics
from align.reports import summary
from scripts.comparison.figures import lines
from scripts.comparison.methods import HACKED


def section(output: Path, images: Path) -> str:
    """Runs that their reward misleads, with the guard and, the same, without."""
    ended = {name: _hacked(output / "overoptimised" / name, name, images) for name in HACKED}
    told = [text for text in ended.values() if text]
    return "\n".join([HACKING, *told]) if told else ""


HACKING = """## Over-optimisation, and the guard

DRaFT-5 too fast and for too long, on one reward. The guard, which sees neither judge nor gold, holds another reward
out.
"""


def _hacked(folder: Path, name: str, images: Path) -> str:
    guarded, free = folder / "guarded", folder / "free"
    if not (guarded / summary.FILE_NAME).is_file() or not (free / summary.FILE_NAME).is_file():
        return ""
    found, records = summary.read(guarded), metrics.read(free / metrics.FILE_NAME)
    trained = [(r["step"], r["reward/total"]) for r in records if "reward/total" in r]
    curves = {"trained reward": charts.running_mean(trained)}
    curves |= {
        label: [(r["step"], r[key]) for r in records if key in r]
        for label, key in (("held-out reward", "guard/score"), ("gold", "panel/gold"), ("judge", "panel/judge"))
    }
    marks = {float(found.chosen_update): "kept", float(found.num_updates): "stopped"}
    drawn = {label: _own_range(points) for label, points in curves.items()}
    (images / f"results-hacked-{name}.svg").write_text(lines(drawn, "update", marks), encoding="utf-8")
    gold, judge, chosen = dict(curves["gold"]), dict(curves["judge"]), found.chosen_update
    last = max(gold)
    reward = [_at(curves["trained reward"], step) for step in (chosen or trained[0][0], last)]
    best = {"gold": max(gold.values()), "judge": max(judge.values())}
    text = (
        f"### {name}\n\n"
        f"Gold utility starts at {gold[0]:.3f}, is {best['gold']:.3f} at its best and {gold[last]:.3f} at the end; "
        f"the judge passes {judge[0]:.0%}, {best['judge']:.0%} and {judge[last]:.0%}. The guard ends the run after "
        f"update {found.num_updates} and keeps update {chosen}: gold {gold[chosen]:.3f}, judge {judge[chosen]:.0%}. "
        f"The trained reward (running mean) is {reward[0]:.3f} there and {reward[1]:.3f} at the end.\n\n"
        f"![{name}: each curve on its own range](img/results-hacked-{name}.svg)\n"
    )
    if sheets := sorted((free / "samples").glob("*.png")):
        shutil.copyfile(sheets[-1], images / f"results-hacked-{name}.png")
        text += (
            f"\n![What {name} is hacked by: the last pictures of the unguarded run](img/results-hacked-{name}.png)\n"
        )
    return text


def _at(points: charts.Points, x: float) -> float:
    """The last value up to x."""
    return [y for place, y in points if place <= x][-1]


def _own_range(points: charts.Points) -> list[tuple[float, float]]:
    low, high = min(y for _, y in points), max(y for _, y in points)
    return [(x, (y - low) / ((high - low) or 1.0)) for x, y in points]
