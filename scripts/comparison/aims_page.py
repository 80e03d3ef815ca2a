"""The page of methods with an aim of their own: a section each, from the runs that have ended."""

import itertools
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from align.run import Run
from align.shapes.scene import COLOURS
from align.training.evaluate import FOLDER as REPORT
from align.training.evaluate import SCORES
from scripts.comparison import kept
from scripts.comparison.aims import CIRCLES, FOLDER, OF, OTHERS, PARTS, SHOWN, coloured, with_star
from scripts.comparison.curves import ended, over_seeds

TARGET = 0.75  # share of large ones in recipes/fairness/shapes.yaml

HEAD = """# Aims of their own on the shapes world

{verdict}

Written by `python scripts/compare.py write` from measured runs; not edited by hand.

Each method by its own recipe (fairness-colours: by the CLIP alone, 40 updates), to its end, the last adapter, drawn as
the recipe samples, base and trained at the same noise; what a picture shows is read from its pixels by the judge.
The mean of the seeds, changes with their 95 % t-interval over seeds, in brackets the seeds. *Held*: the judge's change
on the report prompts that are to stay as they were, those with a size in them (fairness), a colour (fairness-colours),
without a star (unlearn), a size (srpo).

"""
FAIRNESS = """## fairness: "a circle", three quarters of them large

*Shown*: the share of {count:,} pictures a seed for "a circle" whose largest object is large; *from the target*: how far
that is from three quarters.

| | base | trained | ratio | held | shows a circle, base | trained |
|---|---|---|---|---|---|---|
"""
COLOURED = """
## fairness-colours: "a circle", all colours alike

*Bias*: the mean over pairs of the six colours of the difference of their shares, among {count:,} pictures a seed for
"a circle", of those in which the judge reads a colour; equal shares drawn so often give {floor:.4f}.

| | base | trained | ratio | held | shows a circle, base | trained |
|---|---|---|---|---|---|---|
"""
COLOUR_HEAD = "\n| share of | {names} |\n|---{bars}|\n"
UNLEARN = """
## unlearn: "star"

*Shown*: the share of {count} pictures a seed for report prompts with a star in which the judge reads one. *Passed*: the
judge's pass of the report prompts with a star.

| | base | trained | ratio | held | passed, base | trained |
|---|---|---|---|---|---|---|
"""
SRPO = """
## srpo: "large" against "small"

*Shown*: the share of {count} pictures a seed for report prompts without a size whose largest object is large. *Passed*:
the judge's pass of the report prompts that ask for something large.

| | base | trained | ratio | held | passed, base | trained |
|---|---|---|---|---|---|---|
"""


def shares(shown: Sequence[Sequence[str | None]]) -> list[float]:
    """Of the colours, in the world's order, among the pictures in which one is read."""
    colours = [colour for _, colour, *_ in shown if colour is not None]
    return [colours.count(colour) / max(1, len(colours)) for colour in COLOURS]


def bias(found: Sequence[float]) -> float:
    """The mean over pairs of the difference of two shares; 0 where all are equal."""
    return statistics.fmean(abs(a - b) for a, b in itertools.combinations(found, 2))


def floor(count: int, draws: int = 2000) -> float:
    """The bias of `count` draws from equal shares, on average."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(COLOURS), (draws, count), generator=generator)
    counts = torch.stack([(drawn == i).sum(1) for i in range(len(COLOURS))], 1) / count
    pairs = [(counts[:, i] - counts[:, j]).abs() for i, j in itertools.combinations(range(len(COLOURS)), 2)]
    return float(torch.stack(pairs).mean())


def write(output: Path, page: Path) -> Path | None:
    """The page; None where nothing has been measured. Sections whose runs are not here stay as they are."""
    found = {name: [run for run in ended(output / FOLDER / name) if (run.output / SHOWN).is_file()] for name in OF}
    renewed = {name: told(runs) for name, told in SECTIONS.items() if (runs := found[name])}
    if not renewed:
        return None
    old = kept.text(page)
    said = kept.verdict(old) | {name: part for name, (part, _) in renewed.items()}
    told = kept.sections(old) | {name: part.strip("\n") for name, (_, part) in renewed.items()}
    verdicts = [said[name] for name in SECTIONS if name in said]
    half = -(-len(verdicts) // 2)
    verdict = "; ".join(verdicts[:half]) + (";\n" + "; ".join(verdicts[half:]) if verdicts[half:] else "") + "."
    text = HEAD.format(verdict=f"**Verdict.** {verdict}") + "\n\n".join(told[name] for name in SECTIONS if name in told)
    page.write_text(f"{text}\n", encoding="utf-8")
    return page


def _fairness(runs: Sequence[Run]) -> tuple[str, str]:
    shown = [_shown(run) for run in runs]
    each = {role: [_large(told[role]) for told in shown] for role in PARTS}
    gaps = {role: [abs(share - TARGET) for share in each[role]] for role in PARTS}
    held = [_change(run, OF["fairness"].held) for run in runs]
    text = FAIRNESS.format(count=CIRCLES)
    text += f"| shown | {_list(each['reference'])} | {_list(each['train'])} | | {over_seeds(held)} "
    text += f"| {_circles(shown, 'reference')} | {_circles(shown, 'train')} |\n"
    (base, trained), (before, after) = ([statistics.fmean(x[r]) for r in PARTS] for x in (gaps, each))
    text += f"| from the target | {base:.3f} | {trained:.3f} | {trained / base:.2f} | | | |\n"
    said = f"fairness: large circles {before:.1%} to {after:.1%} (asked: {TARGET:.0%}), {_stays(held)}"
    return said, text


def _large(shown: Sequence[Sequence[str | None]]) -> float:
    sizes = [size for *_, size in shown if size is not None]
    return sizes.count("large") / max(1, len(sizes))


def _circles(shown: Sequence[Mapping[str, Any]], role: str) -> str:
    return f"{statistics.fmean(shape == 'circle' for told in shown for shape, *_ in told[role]):.1%}"


def _colours(runs: Sequence[Run]) -> tuple[str, str]:
    shown = [_shown(run) for run in runs]
    each = {role: [shares(told[role]) for told in shown] for role in PARTS}
    biases = {role: [bias(found) for found in each[role]] for role in PARTS}
    base, trained = (statistics.fmean(biases[role]) for role in PARTS)
    held = [_change(run, coloured) for run in runs]
    text = COLOURED.format(count=CIRCLES, floor=floor(CIRCLES))
    text += f"| bias | {_list(biases['reference'])} | {_list(biases['train'])} | {trained / base:.2f} "
    text += f"| {over_seeds(held)} "
    text += f"| {_circles(shown, 'reference')} | {_circles(shown, 'train')} |\n"
    text += COLOUR_HEAD.format(names=" | ".join(COLOURS), bars="|---" * len(COLOURS))
    for role, called in zip(PARTS, ("base", "trained"), strict=True):
        means = [statistics.fmean(column) for column in zip(*each[role], strict=True)]
        text += f"| {called} | {' | '.join(f'{mean:.1%}' for mean in means)} |\n"
    return f"fairness-colours: their bias {base:.3f} to {trained:.3f}, {_stays(held)}", text


def _stays(held: Sequence[float]) -> str:
    return f"what stays {100 * statistics.fmean(held):+.1f} points"


def _unlearn(runs: Sequence[Run]) -> tuple[str, str]:
    (base, trained), held, text = _table(UNLEARN, "unlearn", runs, with_star)
    return f"unlearn: pictures with a star {base:.1%} to {trained:.1%}, {_stays([held])}", text


def _srpo(runs: Sequence[Run]) -> tuple[str, str]:
    (base, trained), held, text = _table(SRPO, "srpo", runs, lambda prompt: "large" in prompt)
    return f"srpo: large ones where no size is asked {base:.1%} to {trained:.1%}, {_stays([held])}", text


def _table(
    head: str, name: str, runs: Sequence[Run], asks: Callable[[str], bool]
) -> tuple[tuple[float, float], float, str]:
    """((base, trained) share that is shown, the held prompts' change, the section)."""
    shown = [_shown(run) for run in runs]
    seen = {role: [statistics.fmean(told[role]) for told in shown] for role in PARTS}
    base, trained = (statistics.fmean(seen[role]) for role in PARTS)
    held = [_change(run, OF[name].held) for run in runs]
    passed = [statistics.fmean(_judged(run, asks)[part] for run in runs) for part in ("before", "after")]
    text = head.format(count=OTHERS)
    text += f"| shown | {_list(seen['reference'])} | {_list(seen['train'])} | {trained / base:.2f} "
    text += f"| {over_seeds(held)} | {passed[0]:.1%} | {passed[1]:.1%} |\n"
    return (base, trained), statistics.fmean(held), text


SECTIONS = {"fairness": _fairness, "fairness-colours": _colours, "unlearn": _unlearn, "srpo": _srpo}


def _list(each: Sequence[float]) -> str:
    return f"**{statistics.fmean(each):.3f}** ({' '.join(f'{x:.3f}' for x in each)})"


def _shown(run: Run) -> dict[str, list[Any]]:
    told: dict[str, list[Any]] = json.loads((run.output / SHOWN).read_text(encoding="utf-8"))
    return told


def _judged(run: Run, chosen: Callable[[str], bool]) -> Mapping[str, float]:
    """{"before", "after"}: the judge's mean over the report prompts that are `chosen`."""
    report = json.loads((run.output / REPORT / SCORES).read_text(encoding="utf-8"))
    rows = [i for i, prompt in enumerate(report["prompts"]) if chosen(prompt)]
    return {
        part: statistics.fmean(float(report["scores"][part]["judge"][i]) for i in rows) for part in ("before", "after")
    }


def _change(run: Run, chosen: Callable[[str], bool]) -> float:
    judged = _judged(run, chosen)
    return judged["after"] - judged["before"]
