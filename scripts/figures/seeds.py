"""Run a recipe on several seeds and write a table of what each reached: python scripts/figures/seeds.py RECIPE [...].

Finished runs are read, unfinished ones resumed. No seed is left out. The last row is the mean over seeds with its 95 %
t-interval; the rows above have intervals over report prompts.
"""

import json
import re
import shlex
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from scipy import stats

if TYPE_CHECKING:
    from align import Recipe, Run

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))


def table(reports: dict[int, dict]) -> list[str]:
    """Markdown lines of {seed: {label: Comparison}}."""
    labels = list(next(iter(reports.values())))
    lines = ["| seed | " + " | ".join(labels) + " |", "|---" * (len(labels) + 1) + "|"]
    for seed, scores in reports.items():
        cells = [
            f"{c.before.mean:.3f} -> {c.after.mean:.3f}, {c.difference}" for c in (scores[label] for label in labels)
        ]
        lines.append(f"| {seed} | " + " | ".join(cells) + " |")
    cells = []
    for label in labels:
        gains = [scores[label].difference.mean for scores in reports.values()]
        mean, half = sum(gains) / len(gains), 0.0
        if len(gains) > 1:
            half = stats.sem(gains) * stats.t.ppf(0.975, len(gains) - 1)
        scale = sum(scores[label].std_before for scores in reports.values()) / len(gains)
        cells.append(f"**{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]**, {mean / scale:+.2f} sd")
    return [*lines, "| mean | " + " | ".join(cells) + " |"]


def by_skill(told: Sequence[Mapping[str, Any]], label: str = "judge") -> list[str]:
    """Markdown lines of what the strict judge passes of each skill, the mean of the seeds' prompts, from their
    scores.json; none for prompts that are not the embedded world's."""
    from align.shapes.captions import SKILLS, unreadable
    from scripts.pretrain.check import split

    if any(label not in one["scores"]["after"] for one in told) or any(unreadable(told[0]["prompts"])):
        return []
    lines = [f"| {label} | " + " | ".join(SKILLS) + " |", "|---" * (len(SKILLS) + 1) + "|"]
    for when in ("before", "after"):
        each = [split(one["scores"][when][label], one["prompts"]) for one in told]
        values = {skill: [value for found in each for value in found[skill]] for skill in SKILLS}
        cells = [f"{100 * statistics.fmean(values[skill]):.0f} %" if values[skill] else "" for skill in SKILLS]
        lines.append(f"| {when} | " + " | ".join(cells) + " |")
    return ["", *lines]


def verdict(rows: list[str], seeds: str) -> list[str]:
    """The page in two lines, from its table."""
    labels = [label.strip() for label in rows[0].split("|")[2:-1]]
    means = dict(zip(labels, re.findall(r"\*\*(.+?)\*\*", rows[-1]), strict=True))
    told = [f"{label} {means[label]}" for label in ("gold", "judge_graded", "judge") if label in means]
    count = len(seeds.split(","))
    return [
        f"**Verdict.** Mean of {count} seeds, none left out: {', '.join(told)}.",
        "An interval that holds 0 is no difference.",
    ]


def finished(recipe: "Recipe") -> "Run | None":
    """The run of `recipe` in its folder, if it came to its end; else None."""
    from align import Run
    from align.reports.summary import FILE_NAME

    run = Run(Path(recipe.output))
    done = (run.output / FILE_NAME).exists() and run.recipe.dump() | {"output": ""} == recipe.dump() | {"output": ""}
    return run if done else None


def main(
    recipes: list[str],
    seeds: str = "10,11,12,13,14",
    output: Path = ROOT / "outputs" / "seeds",
    change: Annotated[list[str] | None, typer.Option(help="A setting of the recipe: model.checkpoint=...")] = None,
    suffix: Annotated[str, typer.Option(help="Of the page's name, for what was changed.")] = "",
) -> None:
    """Train what is missing and write docs/lab/<recipe>-seeds.md, with slashes as hyphens."""
    import align
    from align.training.evaluate import FOLDER, PICTURE, SCORES
    from align.versions import hardware

    changes = change or []
    for recipe in recipes:
        name = "-".join(part for part in (*recipe.split("/"), suffix) if part)
        options = [f"--seeds={seeds}", *(f"--change={one}" for one in changes)]
        options += [f"--suffix={suffix}"] if suffix else []
        reports, lines, told = {}, [], []
        for seed in map(int, seeds.split(",")):
            wanted = align.load_recipe(recipe, [*changes, f"train.seed={seed}", f"output={output / name / str(seed)}"])
            run = finished(wanted) or align.train(wanted)
            if run.interrupted:
                raise SystemExit(130)
            reports[seed] = run.report.scores
            told.append(json.loads((run.output / FOLDER / SCORES).read_text(encoding="utf-8")))
            cost = run.report
            lines.append(f"Seed {seed}: {cost.num_updates} updates, {cost.seconds:.0f} s, chosen {cost.chosen_update}.")
        count = next(iter(next(iter(reports.values())).values())).asked()
        rows = table(reports)
        text = [
            " ".join([f"# {recipe}", *changes, f"on seeds {seeds}"]),
            "",
            *verdict(rows, seeds),
            "",
            f"Written by `python scripts/figures/seeds.py {shlex.join([recipe, *options])}` on {hardware()}.",
            f"Before -> after and the paired difference with its 95 % interval on {count} report prompts a seed;",
            "sd: of the base model's images.",
            "",
            *rows,
            *by_skill(told),
            "",
            *lines,
        ]
        first = next(iter(reports))
        drawn = output / name / str(first) / PICTURE
        shutil.copyfile(drawn, ROOT / "docs" / "lab" / "img" / f"{name}-seed.png")
        text += ["", f"![Report prompts before and after, seed {first}](img/{name}-seed.png)"]
        (ROOT / "docs" / "lab" / f"{name}-seeds.md").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    typer.run(main)
