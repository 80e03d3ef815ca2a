"""A run's records as charts: rewards, the guard's probes, gradients; of a finished run and of one that runs."""

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from markupsafe import Markup

from align.figures import charts

PROBES = ("drift", "guard/diversity", "guard/chroma", "guard/detail")
ROOM = (-0.5, 0.5)  # of the score, in standard deviations: less than that is not read off a few points
SHEETS = 8  # of samples, in a row

Records = Sequence[Mapping[str, Any]]
Curve = list[tuple[float, float]]
Card = tuple[str, Markup]


def series(records: Records, key: str) -> Curve:
    """[(update, value)] of one key."""
    return [(r["step"], float(r[key])) for r in records if isinstance(r.get(key), int | float) and isfinite(r[key])]


def beginning(records: Records, prefix: str) -> dict[str, Curve]:
    """{what follows the prefix: its curve}."""
    keys = dict.fromkeys(key for record in records for key in record if key.startswith(prefix))
    return {key.removeprefix(prefix): points for key in keys if (points := series(records, key))}


def ending(records: Records, suffix: str) -> dict[str, Curve]:
    """{name of a trainable beside the run's own: its curve}."""
    keys = dict.fromkeys(key for record in records for key in record if key.endswith(suffix))
    return {key.removesuffix(suffix): points for key in keys if (points := series(records, key))}


def training(records: Records, trained_on: Sequence[str], marks: Mapping[float, str]) -> list[Card]:
    """The rewards that are trained on, and those that are held out."""
    trained = beginning(records, "reward/")
    if len(trained_on) == 1:
        trained.pop("total", None)
    inner = (*(probe.removeprefix("guard/") for probe in PROBES), "score")
    held_out = beginning(records, "panel/")
    held_out |= {label: points for label, points in beginning(records, "guard/").items() if label not in inner}
    cards = [(f"reward, trained on: {k}", charts.lines({k: p}, marks=marks)) for k, p in trained.items()]
    return cards + [(f"held out: {k}", charts.lines({k: p}, marks=marks)) for k, p in held_out.items()]


def guard(records: Records, marks: Mapping[float, str]) -> list[Card]:
    """Its score, and its probes with zero in view: on an axis of its own any change looks like an alarm."""
    found = {"score on held-out rewards, in the base's standard deviations": series(records, "guard/score")}
    cards = [(name, charts.lines({name: points}, marks=marks, room=ROOM)) for name, points in found.items()]
    for probe in PROBES:
        name = probe.removeprefix("guard/")
        cards.append((name, charts.lines({name: series(records, probe)}, marks=marks, zero=True)))
    return cards


def gradients(records: Records) -> list[Card]:
    """Norms and cosines."""
    found = {
        "norm of each reward's gradient at the pixels": beginning(records, "pixel_grad/"),
        "cosine between the rewards' gradients": beginning(records, "cosine/"),
        "norm of the adapter's gradient": {"gradient": series(records, "grad_norm"), **ending(records, "/grad_norm")},
        "norm of the adapter": {"adapter": series(records, "adapter_norm"), **ending(records, "/adapter_norm")},
        "loss of what is trained beside the adapter": ending(records, "/loss"),
        "steps with gradient": {"steps": series(records, "kept_steps")},
    }
    return [(title, charts.lines(curves)) for title, curves in found.items()]


def sheets(output: Path, last: int) -> list[tuple[int, Path]]:
    """The samples hook's pictures up to an update; of many, so many evenly spaced ones."""
    there = sorted((output / "samples").glob("step-*.png"))
    found = {int(path.stem[5:]): path for path in there if path.stem[5:].isdigit()}
    steps = [step for step in found if step <= last]
    if not steps:
        return []
    shown = sorted({steps[round(i * (len(steps) - 1) / (SHEETS - 1))] for i in range(SHEETS)})
    return [(step, found[step]) for step in shown]
