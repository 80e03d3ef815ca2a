"""Learning curves: each method by its own recipe, to its end, on several seeds. The judge's gain on prompts that no
recipe was chosen by, and on the way there over seconds and over the images that the reward was asked about."""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from scipy import stats

import align
from align.config import Recipe
from align.data.prompts import load_prompts
from align.errors import UserError
from align.figures import charts
from align.hooks.panel import PanelConfig
from align.reports.summary import FILE_NAME as SUMMARY
from align.run import Run
from align.training.evaluate import FOLDER as REPORT
from align.training.evaluate import SCORES
from scripts.comparison import kept
from scripts.comparison.figures import lines
from scripts.comparison.methods import CALLS, CURVES, GRADIENTS, PREFERENCES, Method, learnt

SPIKE = 5.0
"""A gradient is one where its norm is above this many times the run's median."""
APART = ("rollout_seconds", "reward_seconds")
LABELS = ("judge", "judge_graded", "gold")
COLUMNS = "| method | updates | seconds | parts | asked | judge before | judge | gold | spikes |"
JUDGED = 6  # the judge's cell of a row

HEAD = """# {title}

{verdict}

Written by `python scripts/compare.py write` from measured runs; not edited by hand.

Each method by its own recipe, to its end, the last adapter, no guard. A change is of {prompts:,} report prompts a seed
at the same noise, the model sampled as the recipe samples it ({steps} steps), the mean of the seeds with its 95 %
t-interval over seeds; in brackets the seeds themselves. *Asked*: images that a reward was asked about in training
(*labels*: none, *steps*: predicted images of single steps, not counted). *Seconds*: updates times those of the median
one, one thread, on a machine that did other work beside; *parts*: that one's seconds in drawing + in the reward + in
training. *Spikes*: the share of updates whose gradient's norm is above {spike:g} times the run's median. Curves:
{panel} select prompts, the mean of the seeds.{more}

{learnt}
"""


@dataclass(frozen=True)
class Chapter:
    """A page docs/lab/NAME.md of runs in output/NAME/METHOD/seed-N."""

    name: str
    title: str
    methods: Mapping[str, Method]
    more: str = ""
    judged: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {label: {} for label in LABELS})
    """What looks at the report prompts' images."""


CHAPTERS = {
    "curves": Chapter(
        "curves",
        "Learning curves on the shapes world",
        CURVES,
        """ draft-4x has four times its recipe's updates; draft-1-Nx follow the
last step alone, with N times the updates of draft-1 [there](gradients.md); slow: at half the rate. Prompts hold equal
shares of the skills.""",
    ),
    "preferences": Chapter(
        "preferences",
        "Learning from preferences on the shapes world",
        PREFERENCES,
        """

Learnt from images of the base model that were drawn beforehand, at no cost in these columns: diffusion-dpo, npo and,
once they are inverted, inversion-dpo from pairs that gold's noisy voters ordered, kto and dro from thumbs of the
strict judge. online-dpo draws its own images for gold's voters, with so many updates that it passes the network as
often as diffusion-dpo and its pairs do; spo and tailorpo ask the embedded preference reward. npo's row is the base
drawn against the negative, at guidance 2, and its *before* the base at guidance 2.
Prompts hold equal shares of the skills.""",
    ),
    "gradients": Chapter(
        "gradients",
        "Gradients of rewards at equal network calls",
        GRADIENTS,
        f"""

All with the rewards, rate and batch of `draft/shapes` and six steps without guidance, each for as many updates as
spend {CALLS} network calls times the batch, a forward counted 1 and a backward 2; decoder and rewards come on top,
and with them more of draft-1's many updates. draft-1 is `draft/shapes` with the last step's gradient alone.""",
    ),
}


def train(
    output: Path, chapter: Chapter, name: str, seed: int, *, prompts: int, panel: int = 192, every: int = 20
) -> Run:
    """The run of the chapter's method `name` on `seed`. One that has ended is reported anew alone, and left as it is
    where its report is of these prompts and judges."""
    method = chapter.methods[name]
    watched = {"prompts": "shapes:select", "num_prompts": panel, "rewards": {"gold": {}, "judge": {}}, "every": every}
    judged = {"prompts": "shapes:report", "num_prompts": prompts, "rewards": dict(chapter.judged)}
    recipe = align.load_recipe(method.recipe, [*method.changes, f"train.seed={seed}"])
    sampling = recipe.evaluate.sampling if recipe.evaluate else None
    changes: dict[str, Any] = {
        "train.seed": seed,
        "train.checkpoint_every": every,
        "hooks": {"panel": watched} if panel else {},
        "evaluate": judged | ({"sampling": sampling.model_dump(exclude_unset=True)} if sampling else {}),
        "output": str(output / chapter.name / name / f"seed-{seed}"),
    }
    loaded = align.load_recipe(method.recipe, [*method.changes, *(f"{k}={_yaml(v)}" for k, v in changes.items())])
    if reported(there := Run(Path(loaded.output)), loaded):
        return there
    run = align.train(loaded)
    if run.interrupted:
        raise SystemExit(130)
    return run


def reported(run: Run, recipe: Recipe) -> bool:
    """Whether a run has ended by this recipe, and its report is there, of the recipe's prompts and judges."""
    config, path = recipe.evaluate, run.output / REPORT / SCORES
    if config is None or not path.is_file() or not (run.output / SUMMARY).is_file():
        return False
    try:
        summary, trained = run.report, run.recipe
    except UserError:  # by settings that are no more
        return False
    told = json.loads(path.read_text(encoding="utf-8"))
    return (
        trained.dump() | {"output": ""} == recipe.dump() | {"output": ""}
        and summary.num_updates == recipe.train.num_updates
        and told["prompts"] == load_prompts(config.prompts, count=config.num_prompts, key="evaluate.prompts")
        and config.rewards.keys() <= told["scores"]["after"].keys() & summary.scores.keys()
    )


def write(
    output: Path, page: Path, chapter: Chapter = CHAPTERS["curves"], more: Callable[[Path], str] | None = None
) -> Path | None:
    """Writes the page and docs/lab/img/NAME-*.svg from the runs that have ended, and what `more` says below; None where
    there are none. Rows whose runs are not here stay, and so do their lines, whose points are in NAME-lines.json."""
    found = {name: runs for name in chapter.methods if (runs := ended(output / chapter.name / name))}
    if not found:
        return None
    old = kept.text(page)
    elsewhere = kept.rows(old, chapter.methods, found)
    rows = sorted((_rows(found) | elsewhere).values(), key=lambda row: -kept.mean(kept.cells(row)[JUDGED]))
    images = page.parent / "img"
    images.mkdir(parents=True, exist_ok=True)
    first = next(iter(found.values()))[0]
    panel = cast(PanelConfig, first.recipe.hooks["panel"]).num_prompts
    prompts = first.report.scores["judge"].num_prompts
    steps = first.recipe.sampling.num_steps
    told = {"prompts": prompts, "steps": steps, "spike": SPIKE, "panel": panel, "verdict": _verdict(rows)}
    told |= {"title": chapter.title, "more": chapter.more}
    told["learnt"] = learnt(chapter.methods, [kept.cells(row)[0] for row in rows])
    parts = [HEAD.format(**told), "\n".join((COLUMNS, "|---" * 9 + "|", *rows)) + "\n"]
    if elsewhere:
        kept.same_prompts(page, old, parts[0])
    memory = images / f"{chapter.name}-lines.json"
    drawn = kept.lines(memory, elsewhere)
    for axis, label, place in (("seconds", "seconds in updates", _seconds), ("asked", "images asked about", asked)):
        series = drawn.get(axis, {}) | {name: line for name, runs in found.items() if (line := _curve(runs, place))}
        if not series:
            continue
        drawn[axis] = {name: series[name] for name in chapter.methods if name in series}
        figure = images / f"{chapter.name}-{axis}.svg"
        figure.write_text(lines(drawn[axis], label, {}), encoding="utf-8")
        parts.append(f"![Share that the judge passes, over {label}](img/{figure.name})\n")
    memory.write_text(json.dumps(drawn) + "\n", encoding="utf-8")
    if drawn and (without := [name for name in elsewhere if name not in drawn.get("seconds", {})]):
        parts.append(f"*Without the lines of {', '.join(without)}, which were measured elsewhere.*\n")
    below = (more(output) if more else "") or "".join(f"\n{part}\n" for part in kept.sections(old).values())
    page.write_text("\n".join(parts) + below, encoding="utf-8")
    return page


def asked(recipe: Recipe, records: Sequence[Mapping[str, Any]]) -> list[float]:
    """After each record, the images that rewards were asked about; none where no reward is, or where what it judges
    are the steps of rollouts, which are not counted."""
    if not recipe.rewards or getattr(recipe.data, "name", "") == "rollouts":
        return []
    if every := getattr(recipe.data, "every", 0):  # pairs of the policy's own images, drawn for so many updates
        data: Any = recipe.data
        each = data.num_prompts(recipe.train.batch_size) * data.num_images
        return [each * -(-record["step"] // every) for record in records]
    return [record.get("queries", recipe.train.batch_size * record["step"]) for record in records]


def spikes(norms: Sequence[float]) -> float:
    """The share of gradient norms above SPIKE times their median; 0 of none."""
    middle = statistics.median(norms) if norms else 0.0
    return sum(norm > SPIKE * middle for norm in norms) / max(1, len(norms))


def parts(runs: Sequence[Sequence[Mapping[str, Any]]], every: int = 1) -> str:
    """ "3.1 + 0.1 + 2.0": the median update's seconds of drawing, of the reward and of training; one figure where the
    update draws and scores with a gradient."""
    records = [record for each in runs for record in each]
    middle = {key: statistics.median(r.get(key, 0.0) for r in records) for key in (*APART, "seconds")}
    apart = [middle[key] for key in APART]
    whole = statistics.median(_middle(each, every) for each in runs)
    told = [*apart, middle["seconds"] - sum(apart)] if any(apart) else [whole]
    return " + ".join(f"{seconds:.1f}" for seconds in told)


def over_seeds(each: Sequence[float]) -> str:
    """ "+0.31 [+0.27, +0.35] (+0.30 +0.33 +0.30)"; one seed has no interval."""
    mean, told = statistics.fmean(each), " ".join(f"{gain:+.3f}" for gain in each)
    if len(each) < 2:
        return f"{mean:+.3f} ({told})"
    half = _half(each)
    return f"**{mean:+.3f}** [{mean - half:+.3f}, {mean + half:+.3f}] ({told})"


def _half(each: Sequence[float]) -> float:
    """Half the width of Student's 95 % interval."""
    return statistics.stdev(each) / len(each) ** 0.5 * float(stats.t.ppf(0.975, len(each) - 1))


def gains(runs: Sequence[Run], label: str) -> list[float]:
    """The mean gain of each seed."""
    return [run.report.scores[label].difference.mean for run in runs]


def _verdict(rows: Sequence[str]) -> str:
    """The page in two lines, from the rows of its table, the best first."""
    told = [(cells[0], cells[JUDGED]) for cells in map(kept.cells, rows)]
    (best, most), (least, last) = told[0], told[-1]
    first = f"**Verdict.** {best} raises the share that the judge passes most, "
    first += f"by {100 * kept.mean(most):.1f} points{kept.alone(most)},"
    unsure = "" if any(kept.apart_from_none(judged) for _, judged in told) else " No interval leaves 0 out."
    return f"{first}\nand {least} least, by {100 * kept.mean(last):.1f}{kept.alone(last)}.{unsure}"


def _rows(found: Mapping[str, Sequence[Run]]) -> dict[str, str]:
    rows = {}
    for name, runs in found.items():
        records = [run.metrics for run in runs]
        trained = [[record for record in each if "seconds" in record] for each in records]
        counts = [asked(run.recipe, each) for run, each in zip(runs, trained, strict=True)]
        told = f"{counts[0][-1]:,.0f}" if counts[0] else ("steps" if runs[0].recipe.rewards else "labels")
        seconds = statistics.fmean(len(each) * _middle(each, _every(runs[0].recipe)) for each in trained)
        before = statistics.fmean(run.report.scores["judge"].before.mean for run in runs)
        norms = [record["grad_norm"] for each in trained for record in each if record.get("grad_norm") is not None]
        split = parts(trained, _every(runs[0].recipe))
        rows[name] = (
            f"| {name} | {runs[0].report.num_updates} | {seconds:.0f} | {split} | {told} | {before:.1%} "
            f"| {over_seeds(gains(runs, 'judge'))} | {over_seeds(gains(runs, 'gold'))} | {spikes(norms):.1%} |"
        )
    return rows


def _curve(runs: Sequence[Run], place: Callable[[Recipe, Sequence[Mapping[str, Any]]], list[float]]) -> charts.Points:
    """(what was spent, share that the judge passes), means of the seeds."""
    lines = []
    for run in runs:
        places = place(run.recipe, run.metrics)
        lines.append([
            (x, record["panel/judge"])
            for x, record in zip(places, run.metrics, strict=False)
            if "panel/judge" in record
        ])  # fmt: skip
    together = torch.tensor([line[: min(map(len, lines))] for line in lines]).double()
    return [(round(float(x), 1), round(float(y), 4)) for x, y in together.mean(0)] if together.ndim == 3 else []


def _seconds(recipe: Recipe, records: Sequence[Mapping[str, Any]]) -> list[float]:
    """After each record, updates times the median one's seconds: what else the machine did stretches single ones."""
    each = _middle(records, _every(recipe))
    return [each * record["step"] for record in records]


def _every(recipe: Recipe) -> int:
    """Updates between two drawings of the policy's own pairs; 1 elsewhere."""
    return getattr(recipe.data, "every", 1)


def _middle(records: Sequence[Mapping[str, Any]], every: int) -> float:
    """The median update's seconds; where images are drawn for `every` updates, the median of their means."""
    each = [record["seconds"] for record in records if "seconds" in record]
    return statistics.median(statistics.fmean(each[i : i + every]) for i in range(0, len(each), every))


def ended(folder: Path) -> list[Run]:
    runs = [Run(path) for path in sorted(folder.glob("seed-*")) if (path / SUMMARY).is_file()]
    return [run for run in runs if run.report.scores]


def _yaml(value: object) -> str:
    import yaml

    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()
