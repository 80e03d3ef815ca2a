"""evaluation.html: an evaluation in one file that needs nothing else; tables, sweeps, and the images to browse."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from markupsafe import Markup

from align.evaluation.benchmarks import Item
from align.evaluation.charts import Mark, by_strength, fidelity
from align.evaluation.files import Folder
from align.evaluation.grid import grid
from align.evaluation.results import ArmResult, Evaluation, Measured, seen
from align.evaluation.statistics import Gain
from align.figures import charts, pages
from align.figures.statistics import LEAST, Interval, survivors

PAGE = "evaluation.html"
FEW = 3  # arms whose tables are all shown at once


def page(found: Evaluation, measured: Sequence[Measured], items: Sequence[Item], folder: Folder) -> str:
    """The whole page."""
    held_out = [label for label in found.baseline.scores if label not in found.trained_on]
    verdict, most = held_out[-1] if held_out else next(iter(found.baseline.scores)), limit(found)
    return pages.page(
        "evaluation.html",
        found=found,
        title=_title(found),
        kicker="; ".join([f"{found.prompts} on {found.model}", found.sampling, *seen(found)]),
        facts={
            "prompts": f"{found.num_prompts:,}{_distinct(found)}",
            "images of each": str(found.num_images),
            "seed": str(found.seed),
            "categories": str(len(found.categories) or "none"),
        },
        few=FEW,
        kind=lambda gain: _kind(gain, most),
        bar=lambda gain: _bar(gain, most),
        everywhere=lambda arm: {"all": arm.scores, **arm.categories},
        looked=_looked(found),
        baseline={"all": found.baseline.scores, **found.baseline.categories},
        sweeps=list(_sweeps(found)),
        fronts=list(_fronts(found, verdict)),
        made=_made(found),
        **grid(measured, items, folder, verdict),
    )


def _distinct(found: Evaluation) -> str:
    return "" if found.num_distinct in (None, found.num_prompts) else f" ({found.num_distinct:,} distinct)"


def _title(found: Evaluation) -> str:
    if not found.arms:
        return found.baseline.label
    one = len(found.arms) == 1
    return f"{found.arms[0].label if one else f'{len(found.arms)} arms'} against {found.baseline.label}"


def limit(found: Evaluation) -> float:
    """The largest p that is coloured, given all cells that a page shows."""
    return survivors([gain.p for arm in found.arms for gain in _cells(arm)])


def _cells(arm: ArmResult) -> list[Gain]:
    return [gain for scores in (arm.scores, *arm.categories.values()) for gain in scores.values()]


def _looked(found: Evaluation) -> str:
    return (
        f"{sum(len(_cells(arm)) for arm in found.arms)} changes were looked at on this page. Coloured are those that "
        "survive so many (Holm): where nothing has changed, no cell is, on 95 of 100 pages. No interval is given for "
        f"fewer than {LEAST} prompts."
    )


def _sure(gain: Gain, most: float) -> bool:
    return gain.p is not None and gain.p <= most


def _kind(gain: Gain, most: float) -> str:
    """Green or red where the change survives the number of cells."""
    return ("up" if gain.difference.mean > 0 else "down") if _sure(gain, most) else ""


def _bar(gain: Gain, most: float) -> Markup:
    unit = gain.std_before or 1.0
    low, high = gain.difference.edges
    return charts.interval(gain.difference.mean / unit, low / unit, high / unit, 1.0, sure=_sure(gain, most))


def _sweeps(found: Evaluation) -> Iterator[tuple[str, Markup]]:
    """A chart for each adapter, or fixed mixture, that was tried at several strengths."""
    series: dict[str, dict[str, list[tuple[float, Interval]]]] = defaultdict(lambda: defaultdict(list))
    for arm in found.arms:
        if len(arm.adapters) != 1 or arm.negative is not None:
            continue
        ((adapter, strength),) = arm.adapters.items()
        for label, gain in arm.scores.items():
            series[adapter][label].append((strength, _over(gain.difference, gain.std_before or 1.0)))
    for adapter, scores in series.items():
        if len({strength for strength, _ in next(iter(scores.values()))}) > 1:
            ordered = {label: sorted(points, key=lambda point: point[0]) for label, points in scores.items()}
            name = next(arm.label.rpartition(" x ")[0] for arm in found.arms if list(arm.adapters) == [adapter])
            yield f"{name}: change in standard deviations of the baseline's scores", by_strength(ordered)


def _over(gain: Interval, unit: float) -> Interval:
    low, high = (None if edge is None else edge / unit for edge in (gain.low, gain.high))
    return Interval(mean=gain.mean / unit, low=low, high=high)


def _fronts(found: Evaluation, verdict: str) -> Iterator[tuple[str, Markup]]:
    """Gain in a reward against the distance of the images from the baseline's, for two arms or more."""
    for label in dict.fromkeys([*found.trained_on[:1], verdict]) if len(found.arms) > 1 else ():
        marks = [Mark(arm.change.mean, arm.scores[label].difference, _short(arm), arm.label) for arm in found.arms]
        drawn = fidelity(marks, x_label="change of the images (0: the baseline's)", y_label=f"change in {label}")
        yield f"{label}: filled and joined are the arms that no other beats in both", drawn


def _short(arm: ArmResult) -> str:
    """The weights alone, where there are some."""
    return ", ".join(f"{weight:g}" for weight in arm.adapters.values()) or arm.label


def _made(found: Evaluation) -> dict[str, str]:
    return {
        "adapters": ", ".join(dict.fromkeys(adapter for arm in found.arms for adapter in arm.adapters)) or "none",
        "intervals": "95 % over distinct prompts: Student's t for means, exact or Wilson's for rates; differences "
        "paired by prompt and seed",
        "machine": found.hardware,
        "versions": ", ".join(f"{name} {version}" for name, version in found.versions.items()),
    }
