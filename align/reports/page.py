"""report.html: a run in one file that needs nothing else; pictures, curves, what the guard saw, and how it was made."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from align.errors import UserError
from align.figures import charts, pages
from align.figures.statistics import survivors
from align.files.near import near
from align.files.output import write as write_file
from align.files.texts import Unreadable, read_text
from align.hooks import metrics
from align.recipes import RECIPE
from align.reports import curves, summary
from align.reports.curves import Card, Curve, Records
from align.reports.summary import Summary
from align.training import evaluate

FILE_NAME = "report.html"
GOLD = "gold"  # the reward that knows the truth, where there is one


def write(output: Path) -> Path:
    """Writes OUTPUT/report.html from the files of a finished run, and returns its path."""
    if not output.is_dir():
        raise UserError(f"{output}: there is no such folder.{near(output)} Give the folder of a finished run.")
    if not (output / summary.FILE_NAME).is_file():
        begun = "the run is not finished. Go on with align train." if any(output.glob("*.yaml")) else "it is no run's."
        raise UserError(f"{output} holds no {summary.FILE_NAME}: {begun}")
    found, records = summary.read(output), metrics.read(output / metrics.FILE_NAME)
    told, marks = evaluate.read(output), _marks(found)
    text = pages.page(
        "report.html",
        title=f"{found.method} on {found.model}",
        run=output.name,
        facts=_facts(found),
        note=" ".join(f"{why}." for why in _notes(found) if why),
        scores=list(_scores(found)),
        said_of_scores=_said(found),
        pairs=list(_pairs(output, told)),
        training=curves.training(records, found.trained_on, marks),
        sheets=curves.sheets(output, found.num_updates),
        gold=list(_gold(found, records, told)),
        guard=[*curves.guard(records, marks), *_sweeps(found)],
        events=[event for conclusion in found.findings.values() for event in conclusion.get("events", ())],
        watched=list(_watched(found)),
        gradients=curves.gradients(records),
        made=_made(found),
        recipe=_recipe(output),
    )
    return write_file(output / FILE_NAME, text)


def _notes(found: Summary) -> Iterator[str]:
    yield f"Ended early: {found.stopped}" if found.stopped else ""
    yield summary.unmoved(found)
    yield found.fell[:1].upper() + found.fell[1:]


def _facts(found: Summary) -> dict[str, str]:
    facts = {
        "updates": str(found.num_updates),
        "adapter of update": str(found.chosen_update),
        "seed": str(found.seed),
        "training": f"{found.seconds:.0f} s",
        "network rows": f"{found.network_calls:,}",
    }
    for conclusion in found.findings.values():
        if "recommended_strength" in conclusion:
            doubt = "" if conclusion.get("gain", {}).get("better", True) else ", not surely better than the base"
            facts[f"recommended strength{doubt}"] = f"{conclusion['recommended_strength']:g}"
    return facts


def _scores(found: Summary) -> Iterator[dict[str, Any]]:
    limit = survivors([score.p for score in found.scores.values()])
    others = "not trained on" if found.report_seen else "held out"
    for label, score in found.scores.items():
        change, unit = score.difference, score.std_before or 1.0
        low, high = change.edges
        sure = change.low is not None and (score.p is None or score.p <= limit)
        yield {
            "label": label,
            "role": "trained on" if label in found.trained_on else others,
            "before": score.before.mean,
            "after": score.after.mean,
            "change": change.mean,
            "within": change.within("+z.4f", " to "),
            "bar": charts.interval(change.mean / unit, low / unit, high / unit, 1.0, sure=sure),
            "better": score.shares(),
        }


def _said(found: Summary) -> str:
    number = next((score.asked() for score in found.scores.values()), "0")
    return (
        f"{number} {summary.held_out(found.report_seen)} ({found.report_prompts}); the same seeds before and after, "
        f"the adapter at strength {found.strength:g}."
    )


def _recipe(output: Path) -> str:
    try:
        return read_text(output / RECIPE)
    except Unreadable as error:
        raise UserError(str(error)) from None


def _pairs(output: Path, told: evaluate.Told | None) -> Iterator[dict[str, Any]]:
    if told is None:
        return
    label = told.verdict
    before, after = told.scores.before[label], told.scores.after[label]
    yes_or_no = set(before) | set(after) <= {0.0, 1.0}
    for number, prompt in enumerate(told.prompts):
        files = [output / evaluate.FOLDER / f"{number:04d}-{name}.png" for name in ("before", "after")]
        if not all(file.is_file() for file in files):
            return
        values = before[number], after[number]
        told_alike = f"{values[0]:.3f}" == f"{values[1]:.3f}"
        sides = []
        for name, file, value in zip(("before", "after"), files, values, strict=True):
            rose = (value == 1) if yes_or_no else None if name == "before" or told_alike else value > values[0]
            said = ("yes" if value else "no") if yes_or_no else f"{value:.3f}"
            kind = "plain" if rose is None else "good" if rose else "bad"
            sides.append({"name": name, "file": file, "kind": kind, "said": f"{label} {said}"})
        yield {"prompt": prompt, "sides": sides}


def _marks(found: Summary) -> dict[float, str]:
    marks = {float(found.chosen_update): f"update {found.chosen_update}: the adapter that was kept"}
    for conclusion in found.findings.values():
        marks |= {float(event["update"]): str(event["event"]) for event in conclusion.get("events", ())}
    return marks


def _gold(found: Summary, records: Records, told: evaluate.Told | None) -> Iterator[Card]:
    proxy = found.trained_on[0] if found.trained_on else ""
    truth, trained = curves.beginning(records, "panel/").get(GOLD, []), curves.series(records, "reward/total")
    if truth and trained:
        both = {"trained reward": _relative(charts.running_mean(trained)), GOLD: _relative(truth)}
        yield "each as a share of its own range, over the run", charts.lines(both, marks=_marks(found))
    before, after = (told.scores.before, told.scores.after) if told else ({}, {})
    if {proxy, GOLD} <= before.keys() & after.keys() and proxy != GOLD:
        gains = {label: [b - a for a, b in zip(before[label], after[label], strict=True)] for label in (proxy, GOLD)}
        points = list(zip(gains[proxy], gains[GOLD], strict=True))
        title = f"change of each report prompt: {proxy} (trained on) and {GOLD}"
        yield title, charts.scatter(points, x_label=f"change in {proxy}", y_label=f"change in {GOLD}")


def _relative(points: charts.Points) -> Curve:
    low, high = min(y for _, y in points), max(y for _, y in points)
    return [(x, (y - low) / (high - low or 1.0)) for x, y in points]


def _sweeps(found: Summary) -> Iterator[Card]:
    for conclusion in found.findings.values():
        if sweep := conclusion.get("sweep"):
            points = {"score": [(entry["strength"], entry["score"]) for entry in sweep]}
            best = conclusion["recommended_strength"]
            yield f"score by the adapter's strength; recommended: {best:g}", charts.lines(points, x_label="strength")


def _watched(found: Summary) -> Iterator[str]:
    for conclusion in found.findings.values():
        if seconds := conclusion.get("seconds"):
            share = 100 * seconds / (seconds + found.seconds)
            yield f"Watching took {seconds:.1f} s, {share:.0f} % of the training time."


def _made(found: Summary) -> dict[str, str]:
    gpu = "" if found.peak_gpu_mib is None else f", GPU {found.peak_gpu_mib:.0f} MiB"
    rows = {
        "machine": found.hardware,
        "time": f"{found.seconds:.1f} s in updates, {found.seconds_per_update:.2f} s each",
        "processes": str(found.num_processes),
        "cost": f"{found.forward_equivalents:,} forward-equivalents of the network",
        "memory": f"{found.peak_rss_mib:.0f} MiB{gpu}",
        "versions": ", ".join(f"{name} {version}" for name, version in found.versions.items()),
    }
    return rows | {f"adapter {name}": text for name, text in found.adapters.items()}
