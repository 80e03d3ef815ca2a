"""Students of few steps: TDM at 4 and at 2 steps, and what rewards make of them, beside the base at few and at many.

The base is drawn at the noise of each seed's report, so that differences are of the same prompts and the same x_T.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import align
from align.config import Recipe
from align.data.prompts import load_prompts
from align.files.output import write as write_text
from align.noise.studio import Studio
from align.policy.painter import Painter
from align.run import Run
from align.sampling import SamplingConfig
from align.training.evaluate import FOLDER as REPORT
from align.training.evaluate import SCORES
from scripts.comparison import kept
from scripts.comparison.curves import LABELS, Chapter, ended, over_seeds, train
from scripts.comparison.figures import lines
from scripts.comparison.methods import STUDENTS
from scripts.comparison.parts import composite

FOLDER, BLUR = "students", "energy"
JUDGED: Mapping[str, Mapping[str, Any]] = {label: {} for label in LABELS} | {
    BLUR: {"name": "sharpness", "form": "gradient"}
}
TEACHER = {"num_steps": 20, "guidance_scale": 2.0}
PANEL = 192  # select prompts of the curves
TO_MANY = 3  # the cell of a row in which that stands
FREE = ", no guidance"  # ends the name of a base at few steps

HEAD = """# Students of few steps on the shapes world

{verdict}

Written by `python scripts/compare.py write` from measured runs; not edited by hand.

Each student by its recipe, to its end, the last adapter, {prompts:,} report prompts a seed, the mean of the seeds,
and differences with their 95 % t-interval over seeds, in brackets the seeds. *To many*: against its base at {many}
steps under guidance {guidance:g}, {calls} network calls an image, at the same noise; *its own steps*: the base at as
many steps as the student, without guidance; *its start*: the student that it begins from. *Energy*: of the images'
gradients, in percent of that base's; less is blur. tdm_r1 and nft begin from the seed's tdm-4, tdm_r1-ode and nft-ode
from its tdm-4-ode, and ask the strict judge; diff-instruct begins from tdm-2 and follows pick; tdm-4-lcm draws the
noise of each step anew; ode-4 is fitted along the teacher's trajectories, on every layer, and tdm-4-ode goes on from
it. *s* are the seconds of the training's updates on one thread, on a machine that did other work beside, what it
begins from not counted.

| drawn by | steps | judge | to many | its own steps | its start | gold, many | gold, start | energy | updates | s |
|---|---|---|---|---|---|---|---|---|---|---|
"""


def measure(output: Path, name: str, seed: int, *, prompts: int) -> None:
    """The student `name` of the seed, after the one that it begins from, and the base at many steps."""
    method = STUDENTS[name]
    chapter = Chapter(FOLDER, "", {name: method.method}, judged=JUDGED)
    if method.start:
        measure(output, method.start, seed, prompts=prompts)
        adapter = output / FOLDER / method.start / f"seed-{seed}" / "adapter"
        begun = replace(method.method, changes=(*method.method.changes, f"adapter.init={adapter}"))
        chapter = replace(chapter, methods={name: begun})
    run = train(output, chapter, name, seed, prompts=prompts, panel=PANEL, every=50)
    teach(output, run.recipe, prompts)


def teach(output: Path, recipe: Recipe, count: int) -> None:
    """Draws and scores the base at many steps under guidance, at the noise of the run's report."""
    path = _teacher(output, recipe)
    if path.is_file():
        return
    studio = Studio(recipe)
    sampling = SamplingConfig.model_validate(TEACHER)
    painter = Painter(studio.policy, sampling, studio.accelerator, seed=recipe.train.seed)
    asked = load_prompts("shapes:report", count=count, key="prompts")
    judges = composite(align.load_recipe("tdm/shapes", [f"rewards={json.dumps(JUDGED)}"]).rewards)
    scores, _ = painter.score("reference", asked, judges, stream="report")
    write_text(path, json.dumps({label: value.tolist() for label, value in scores.items()}))


def _teacher(output: Path, recipe: Recipe) -> Path:
    model: Any = recipe.model
    return output / FOLDER / "teacher" / model.checkpoint.removeprefix("embedded:") / f"{recipe.train.seed}.json"


def _many(output: Path, run: Run) -> dict[str, list[float]]:
    told: dict[str, list[float]] = json.loads(_teacher(output, run.recipe).read_text(encoding="utf-8"))
    return told


def write(output: Path, page: Path) -> Path | None:
    """The page; None where nothing has been measured. Rows whose runs are not here stay as they are, and with them
    the figure and the rows of the bases, which are of all students."""
    found = {name: runs for name in STUDENTS if (runs := ended(output / FOLDER / name))}
    if not found:
        return None
    old = kept.text(page)
    elsewhere = kept.rows(old, STUDENTS, found)
    rows = dict(elsewhere)
    for name, runs in found.items():
        told = [_scores(run) for run in runs]
        many = [_many(output, run) for run in runs]
        gain = [_mean(t["after"], "judge") - _mean(m, "judge") for t, m in zip(told, many, strict=True)]
        own = [_mean(t["after"], "judge") - _mean(t["before"], "judge") for t in told]
        gold = [_mean(t["after"], "gold") - _mean(m, "gold") for t, m in zip(told, many, strict=True)]
        blur = [_mean(t["after"], BLUR) / _mean(m, BLUR) for t, m in zip(told, many, strict=True)]
        passed = statistics.fmean(_mean(t["after"], "judge") for t in told)
        start, golden = (_begun(output, name, told, runs, label) for label in ("judge", "gold"))
        seconds = statistics.fmean(sum(r.get("seconds", 0.0) for r in run.metrics) for run in runs)
        rows[name] = (
            f"| {name} | {runs[0].recipe.sampling.num_steps} | {passed:.1%} | {over_seeds(gain)} "
            f"| {over_seeds(own)} | {start} | {over_seeds(gold)} | {golden} | {_percent(blur)} "
            f"| {runs[0].report.num_updates} | {seconds:.0f} |"
        )
    first = next(iter(found.values()))[0]
    gains = {name: kept.mean(kept.cells(rows[name])[TO_MANY]) for name in STUDENTS if name in rows}
    best = max(gains, key=gains.__getitem__)
    many = TEACHER["num_steps"]
    verdict = f"**Verdict.** Against the base at {many} guided steps, in points of the strict judge:\n"
    verdict += ", ".join(f"{name} {100 * gain:+.1f}" for name, gain in gains.items())
    head = HEAD.format(
        verdict=f"{verdict}; {best} is best.",
        prompts=first.report.scores["judge"].num_prompts,
        many=TEACHER["num_steps"],
        guidance=TEACHER["guidance_scale"],
        calls=2 * int(TEACHER["num_steps"]),
    )
    if elsewhere:
        kept.same_prompts(page, old, head)
    drawn = page.parent / "img" / "students.svg"
    if not (elsewhere and drawn.is_file()):
        drawn.parent.mkdir(parents=True, exist_ok=True)
        drawn.write_text(lines(_curves(found), "update", {}), encoding="utf-8")
    bases = _together(_bases(output, found), kept.table(old) if elsewhere else ())
    figure = f"\n![Share of {PANEL} select prompts that the judge passes, over updates](img/students.svg)\n"
    figure += kept.FIGURE if elsewhere else ""
    table = [*(rows[name] for name in gains), *bases]
    page.write_text(head + "\n".join(table) + "\n" + figure, encoding="utf-8")
    return page


def _together(bases: Sequence[str], old: Sequence[str]) -> list[str]:
    """Rows of bases, those that were on the page before new ones; without guidance first."""
    rows = {tuple(kept.cells(row)[:2]): row for row in bases}
    rows |= {tuple(found[:2]): row for row in old if ", " in (found := kept.cells(row))[0]}
    return [rows[name, steps] for name, steps in sorted(rows, key=lambda k: (FREE not in k[0], k[0], int(k[1])))]


def _curves(found: Mapping[str, Sequence[Run]]) -> dict[str, list[tuple[float, float]]]:
    """(update, share that the judge passes), means of the seeds."""
    curves = {}
    for name, runs in found.items():
        each = [{r["step"]: r["panel/judge"] for r in run.metrics if "panel/judge" in r} for run in runs]
        shared = sorted(set.intersection(*map(set, each)))
        curves[name] = [(float(step), statistics.fmean(line[step] for line in each)) for step in shared]
    return curves


def _begun(output: Path, name: str, told: Sequence[Mapping[str, Any]], runs: Sequence[Run], label: str) -> str:
    """A label's gain over the student that it begins from; empty where it begins from the base."""
    if not (start := STUDENTS[name].start):
        return ""
    each = []
    for run, own in zip(runs, told, strict=True):
        first = Run(output / FOLDER / start / f"seed-{run.recipe.train.seed}")
        each.append(_mean(own["after"], label) - _mean(_scores(first)["after"], label))
    return over_seeds(each)


def _bases(output: Path, found: Mapping[str, Sequence[Run]]) -> list[str]:
    """Rows of each base at its students' steps, and at many."""
    few: dict[tuple[str, int], Sequence[Run]] = {}
    for runs in sorted(found.values(), key=len):  # the most seeds that there are
        few[_teacher(output, runs[0].recipe).parent.name, runs[0].recipe.sampling.num_steps] = runs
    rows = []
    for (base, steps), runs in sorted(few.items()):
        before, many = [_scores(run)["before"] for run in runs], [_many(output, run) for run in runs]
        each, gold = (
            [_mean(b, label) - _mean(m, label) for b, m in zip(before, many, strict=True)]
            for label in ("judge", "gold")
        )
        blur = [_mean(b, BLUR) / _mean(m, BLUR) for b, m in zip(before, many, strict=True)]
        passed = statistics.fmean(_mean(b, "judge") for b in before)
        rows.append(
            f"| {base}{FREE} | {steps} | {passed:.1%} | {over_seeds(each)} | | | {over_seeds(gold)} | "
            f"| {_percent(blur)} | | |"
        )
    for base in dict.fromkeys(base for base, _ in sorted(few)):
        files = (output / FOLDER / "teacher" / base).glob("*.json")
        passed = statistics.fmean(_mean(json.loads(p.read_text(encoding="utf-8")), "judge") for p in files)
        drawn = f"{base}, guidance {TEACHER['guidance_scale']:g} | {TEACHER['num_steps']}"
        rows.append(f"| {drawn} | {passed:.1%} | | | | | | | | |")
    return rows


def _percent(each: Sequence[float]) -> str:
    return f"{statistics.fmean(each):.0%} ({' '.join(f'{x:.0%}' for x in each)})"


def _scores(run: Run) -> dict[str, dict[str, list[float]]]:
    told: dict[str, dict[str, list[float]]] = json.loads((run.output / REPORT / SCORES).read_text(encoding="utf-8"))[
        "scores"
    ]
    return told


def _mean(scores: Mapping[str, Sequence[float]], label: str) -> float:
    return float(torch.tensor(scores[label]).mean())
