"""docs/lab/results.md: what every method gains, from the tables of the chapters beside it, and what best of n gains and
costs; never edited by hand."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import align
from scripts.comparison import kept
from scripts.comparison.best import FOLDER
from scripts.comparison.curves import CHAPTERS, JUDGED, over_seeds
from scripts.comparison.methods import Method, asks

KINDS = {"gradients": "a reward's gradient", "curves": "a reward", "preferences": "preferences"}
PAGE = """# Results on the shapes world

{verdict}

Written by `python scripts/compare.py write` from measured runs; not edited by hand.

## What is trained

Each method by its recipe or, of gradients, at equal network calls, drawn as it is trained, in six steps without
guidance (npo's *before* has guidance), on report prompts at the same noise: the mean of the seeds with its 95 %
t-interval over seeds, in brackets the seeds. *Seconds*: of the updates, on one thread of a machine that did other work
beside. *Spikes*: the share of updates whose gradient's norm is above 5 times the run's median. Curves and settings:
the pages of the last column. *Learns from*: with the rewards that training asks; what asks judge, judge_graded or gold
is taught by the truth that it is measured by.

{trained}

{below}"""
BELOW = """## Best of n

The base draws n images for each of {prompts} report prompts, {steps} network calls and {each:.2f} s each with decoder
and score, and the rewards of `draft/shapes` (eye and pick) choose. Judge and gold are above one image at the same
noise.

| n | calls an image | judge | judge gained | gold gained |
|---|---|---|---|---|
{best}

## Which costs less

*As good as*: the least n whose mean gain by the judge is the method's. *Images*: drawn so often, the method's updates
are paid for by what best of n spends on choosing, in seconds; what pairs and thumbs cost to draw is not counted. *At
its cost*: what best of n gains for the {prompts}
prompts where choosing may cost them together as many seconds as the training, on the line between two n; its own
seconds come again for the next {prompts} images, the training's do not.

| method | judge gained | as good as | images | best of n at its cost |
|---|---|---|---|---|
{costs}
"""


BEST = "## Best of n\n"
LATER = "\n*Methods that are missing here, or have another gain above, were measured later, elsewhere.*\n"


@dataclass(frozen=True)
class Trained:
    """A row of a chapter's table."""

    name: str
    chapter: str
    cells: Sequence[str]

    @property
    def kind(self) -> str:
        """What it learns from: its chapter's, unless it follows a reward's gradient."""
        objective = align.load_recipe(self.method.recipe).objective
        return KINDS["gradients" if getattr(objective, "needs_gradient", False) else self.chapter]

    @property
    def method(self) -> Method:
        return CHAPTERS[self.chapter].methods[self.name]

    @property
    def gain(self) -> float:
        return kept.mean(self.cells[JUDGED])

    @property
    def seconds(self) -> float:
        return float(self.cells[2])


def write(output: Path, page: Path) -> Path | None:
    """Writes the page from the chapters beside it; None where best of n has not been measured. Measured elsewhere, it
    stays as the page has it, and so does what it costs."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((output / FOLDER).glob("seed-*.json"))]
    found = [
        Trained(kept.cells(row)[0], name, kept.cells(row))
        for name in CHAPTERS
        for row in kept.table(kept.text(page.with_name(f"{name}.md")))
    ]
    old = kept.text(page)
    if not (runs or BEST in old) or not found:
        return None
    found.sort(key=lambda one: -one.gain)
    if runs:
        numbers = [int(n) for n in runs[0]["best"]]
        gains = {n: statistics.fmean(_gains(runs, n, "judge")) for n in numbers}
        each = statistics.fmean(run["seconds"] for run in runs)
        told = {"prompts": runs[0]["prompts"], "steps": runs[0]["steps"], "each": each, "best": _best(runs, numbers)}
        told["costs"] = "\n".join(_cost(one, gains, each, runs[0]["prompts"]) for one in found)
        below = BELOW.format(**told)
    else:
        below = old[old.index(BEST) :].removesuffix(LATER)
        rows = [kept.cells(row) for row in kept.table(below)]
        gains = {int(n): kept.mean(judge) for n, _, _, judge, _ in rows if judge}
        below += "" if all(f"\n| {one.name} | {one.gain:+.3f} |" in below for one in found) else LATER
    told = {"verdict": f"{_verdict(found, gains)} {_chosen(below)}", "trained": _table(found), "below": below}
    page.write_text(PAGE.format(**told), encoding="utf-8")
    return page


def _gains(runs: Sequence[Mapping[str, Any]], n: int, label: str) -> list[float]:
    return [run["best"][str(n)][label] - run["best"]["1"][label] for run in runs]


def _verdict(found: Sequence[Trained], gains: Mapping[int, float]) -> str:
    firsts = {one.kind: one for one in reversed(found)}
    told = ", ".join(
        f"{firsts[kind].name} {100 * firsts[kind].gain:+.1f}{kept.alone(firsts[kind].cells[JUDGED])} from {kind}"
        for kind in KINDS.values()
        if kind in firsts
    )
    best = ", ".join(f"of {n} {100 * gain:+.1f}" for n, gain in gains.items() if n > 1)
    first = f"**Verdict.** Points of the strict judge, the most of each kind: {told};"
    return f"{first}\nbest {best}, paid for each image anew."


def _chosen(below: str) -> str:
    """In how many rows of the table of costs choosing gained more at the method's cost, of those that have a figure."""
    rows = [kept.cells(row) for row in below.splitlines() if row.startswith("| ") and ": +" in row]
    more = sum(float(row[-1].rpartition(" ")[2]) > float(row[1]) for row in rows)
    return f"At a training's cost choosing gains more in {more} of {len(rows)} measured." if rows else ""


def _table(found: Sequence[Trained]) -> str:
    lines = ["| method | learns from | updates | seconds | judge before | judge | gold | spikes | more |"]
    lines.append("|---" * 9 + "|")
    for one in found:
        name, updates, seconds, _, _, before, judge, gold, spikes = one.cells
        learnt, more = f"{one.kind}: {' + '.join(asks(one.method))}", f"[page]({one.chapter}.md)"
        cells = [name, learnt, updates, seconds, before, judge, gold, spikes, more]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _best(runs: Sequence[Mapping[str, Any]], numbers: Sequence[int]) -> str:
    lines = []
    for n in numbers:
        judge = statistics.fmean(run["best"][str(n)]["judge"] for run in runs)
        gained = [over_seeds(_gains(runs, n, label)) if n > 1 else "" for label in ("judge", "gold")]
        lines.append(f"| {n} | {n * runs[0]['steps']} | {judge:.1%} | {gained[0]} | {gained[1]} |")
    return "\n".join(lines)


def _cost(one: Trained, gains: Mapping[int, float], each: float, prompts: int) -> str:
    """A row of what it costs against choosing: n - 1 more images for each one that is kept."""
    alike = next((n for n, gain in gains.items() if n > 1 and gain >= one.gain), None)
    images = "" if alike is None else f"{one.seconds / ((alike - 1) * each):,.0f}"
    told = f"best of {alike}" if alike else f"more than {max(gains)}"
    paid = _at(gains, 1 + one.seconds / each / prompts)
    return f"| {one.name} | {one.gain:+.3f} | {told} | {images} | {paid} |"


def _at(gains: Mapping[int, float], n: float) -> str:
    """The gain of n images, on the line between two numbers that were measured."""
    numbers = sorted(gains)
    if n > numbers[-1]:
        return f"n = {n:.1f}: not measured"
    low = max(k for k in numbers if k <= n)
    high = min((k for k in numbers if k > low), default=low)
    share = (n - low) / (high - low) if high > low else 0.0
    return f"n = {n:.1f}: {gains[low] + share * (gains[high] - gains[low]):+.3f}"
