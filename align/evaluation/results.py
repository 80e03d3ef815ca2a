"""evaluation.json, scores.csv and summary.csv: what an evaluation found. `Evaluation` is the schema of the first."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from align.data.prompts import words
from align.evaluation.arms import Arm
from align.evaluation.benchmarks import Item
from align.evaluation.statistics import Gain, gains, intervals, means
from align.evaluation.verdicts import Examined
from align.evaluation.verdicts import lines as benchmark_lines
from align.figures.statistics import Interval, better
from align.hooks._probes import spread
from rewards._numerals import counted

EVALUATION, SCORES, SUMMARY = "evaluation.json", "scores.csv", "summary.csv"
ALL = "all"


class Known(BaseModel):
    """Frozen, and documented by the text below each field."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Baseline(Known):
    """What the others are held against."""

    label: str
    slug: str
    """Its folder in images/."""
    scores: dict[str, Interval]
    categories: dict[str, dict[str, Interval]]
    diversity: Interval | None


class ArmResult(Known):
    """One arm against the baseline: same prompts, same seeds."""

    label: str
    slug: str
    """Its folder in images/."""
    adapters: dict[str, float]
    """{adapter: weight}."""
    negative: dict[str, float] | None = None
    """The same of guidance's unprompted branch, where it is another than the prompted one's."""
    noise: str | None
    count: int
    scores: dict[str, Gain]
    """{reward or judge: before, after and difference over all prompts}."""
    categories: dict[str, dict[str, Gain]]
    """{category: the same over its prompts}."""
    diversity: Gain | None
    """Mean distance of a prompt's images among themselves, RMS over pixels averaged down to at most 16 x 16; null where
    each prompt has one image."""
    change: Interval
    """Distance of an image from the baseline's of the same prompt and seed, measured in the same way."""
    drift: float | None
    """Mean |out - out_ref|^2 of the network on the baseline's own trajectories; null where only the noise differs."""


class Evaluation(Known):
    """A whole evaluation."""

    model: str
    sampling: str
    seed: int
    prompts: str
    num_prompts: int
    num_distinct: int | None = None
    """Distinct prompts among them, over which the intervals are; null of evaluations that have not counted them."""
    num_images: int
    """Of each prompt."""
    categories: dict[str, int]
    """{category: prompts in it}; empty where the prompts have none."""
    trained_on: list[str]
    """The labels that training, or the choice of noise, has maximised."""
    seen: int = 0
    """How many of the prompts an adapter was trained on: with any, the scores of the others alone are held out."""
    baseline: Baseline
    arms: list[ArmResult]
    benchmark: Examined | None = None
    """What the benchmark of --benchmark says."""
    num_processes: int
    """It changes no number above rounding."""
    hardware: str
    versions: dict[str, str]


class Measured(Known):
    """One arm's scores {label: (P, K)} and small images (P, K, 3, h, w), P prompts with K images each."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    arm: Arm
    scores: dict[str, Tensor]
    small: Tensor
    drift: float | None = None


def groups(items: Sequence[Item]) -> dict[str, Tensor]:
    """{category: the places of its prompts}, in the order in which categories first come."""
    found: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        if item.category:
            found.setdefault(item.category, []).append(place)
    return {category: torch.tensor(places) for category, places in found.items()}


def asked(items: Sequence[Item], rows: Tensor | None = None) -> list[str]:
    """The words of each prompt, or of those in places `rows` (n,), by which repeated ones are known."""
    places = range(len(items)) if rows is None else rows.tolist()
    return [words(items[place].prompt) for place in places]


def baseline(measured: Measured, items: Sequence[Item]) -> Baseline:
    """The baseline by itself."""
    diverse = _diversity(measured.small)
    return Baseline(
        label=measured.arm.label,
        slug=measured.arm.slug,
        scores=means(measured.scores, asked(items)),
        categories={
            name: means(_of(measured.scores, rows), asked(items, rows)) for name, rows in groups(items).items()
        },
        diversity=None if diverse is None else intervals(diverse, asked(items))[0],
    )


def against(before: Measured, after: Measured, items: Sequence[Item]) -> ArmResult:
    """`after` held against `before`."""
    old, new = _diversity(before.small), _diversity(after.small)
    moved = (after.small - before.small).double().square().mean((2, 3, 4)).sqrt().mean(1)
    arm, prompts = after.arm, asked(items)
    return ArmResult(
        label=arm.label,
        slug=arm.slug,
        adapters=dict(arm.adapters),
        negative=None if arm.negative is None else dict(arm.negative),
        noise=arm.noise,
        count=arm.count,
        scores=gains(before.scores, after.scores, prompts),
        categories={
            name: gains(_of(before.scores, rows), _of(after.scores, rows), asked(items, rows))
            for name, rows in groups(items).items()
        },
        diversity=None if old is None or new is None else gains({"": old}, {"": new}, prompts)[""],
        change=intervals(moved[:, None], prompts)[0],
        drift=after.drift,
    )


def _diversity(small: Tensor) -> Tensor | None:
    """(P, K, 3, h, w) -> (P, 1); none of single images."""
    return spread(small)[:, None] if small.shape[1] > 1 else None


def _of(scores: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    return {label: values[rows] for label, values in scores.items()}


def scores_csv(measured: Sequence[Measured], items: Sequence[Item]) -> str:
    """A row an image."""
    labels = list(measured[0].scores)
    rows: list[list[object]] = [["arm", "index", "category", "prompt", "image", "file", *labels]]
    for one in measured:
        for index, item in enumerate(items):
            for number in range(one.small.shape[1]):
                file = f"images/{one.arm.slug}/{index:04d}-{number}.png"
                values = [float(one.scores[label][index, number]) for label in labels]
                rows.append([one.arm.label, index, item.category, item.prompt, number, file, *values])
    return _csv(rows)


def summary_csv(found: Evaluation) -> str:
    """A row for each arm, category and score."""
    columns = ["before", "after", "difference", "low", "high", "win_rate", "win_low", "win_high"]
    rows: list[list[object]] = [["arm", "category", "score", "prompts", *columns]]
    for arm in found.arms:
        for category, scores in {ALL: arm.scores, **arm.categories}.items():
            for label, gain in scores.items():
                change, wins = gain.difference, gain.wins
                values = [gain.before.mean, gain.after.mean, change.mean, change.low, change.high]
                values += [wins.mean, wins.low, wins.high]
                rows.append([arm.label, category, label, gain.num_prompts, *values])
    if not found.arms:
        base = found.baseline
        numbers = {ALL: found.num_prompts, **found.categories}
        for category, means_of in {ALL: base.scores, **base.categories}.items():
            for label, mean in means_of.items():
                empty = [""] * (len(columns) - 1)
                rows.append([base.label, category, label, numbers[category], mean.mean, *empty])
    return _csv(rows)


def _csv(rows: Sequence[Sequence[object]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()


def read(text: str) -> Evaluation:
    """From evaluation.json."""
    return Evaluation.model_validate(json.loads(text))


def seen(found: Evaluation) -> Iterator[str]:
    """What is to be known of the prompts, where there is something."""
    if found.seen:
        are = "is" if found.seen == 1 else "are"
        prompts = counted(found.num_prompts, "prompt")
        yield f"{found.seen} of the {prompts} {are} among those that were trained on: no held-out scores"


def lines(found: Evaluation) -> Iterator[str]:
    """What a user reads at the end."""
    width = max(map(len, found.baseline.scores))
    repeated = "" if found.num_distinct in (None, found.num_prompts) else f" ({found.num_distinct} distinct)"
    prompts = f"{counted(found.num_prompts, 'prompt')}{repeated} of {found.prompts}"
    yield f"{prompts}, {counted(found.num_images, 'image')} each"
    yield f"{found.model}, {found.sampling}, seed {found.seed}"
    yield from seen(found)
    yield f"{found.baseline.label}:"
    for label, mean in found.baseline.scores.items():
        yield f"  {label:<{width}}  {mean}"
    for arm in found.arms:
        yield f"{arm.label}:"
        for label, gain in arm.scores.items():
            change = gain.difference
            yield (
                f"  {label:<{width}}  {gain.before.mean:.4f} -> {gain.after.mean:.4f}  change {change.mean:+z.4f} "
                f"[{change.within('+z.4f')}]  {better(gain)}"
            )
        aside = [f"change of the images {arm.change.mean:.4f}"]
        if arm.diversity is not None:
            aside.append(f"diversity {arm.diversity.before.mean:.4f} -> {arm.diversity.after.mean:.4f}")
        if arm.drift is not None:
            aside.append(f"drift {arm.drift:.3g}")
        yield f"  {', '.join(aside)}"
    if found.benchmark is not None:
        yield from benchmark_lines(found.benchmark)
