"""The two charts of a sweep: gain by strength with its intervals, and the front of reward against fidelity."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup

from align.evaluation.statistics import front
from align.figures.charts import WIDTH, colour, dots, inline, line, zero_line
from align.figures.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Mark(NamedTuple):
    """One arm in the plane of reward and fidelity."""

    cost: float
    """How far it is from the baseline."""
    gain: Interval
    label: str
    """Short, drawn beside it."""
    title: str
    """Whole, shown when pointed at."""


def by_strength(series: Mapping[str, Sequence[tuple[float, Interval]]]) -> Markup:
    """{score: [(strength, gain)]} as lines with a band for the interval."""

    def build(axes: "Axes") -> None:
        axes.axhline(0, **zero_line())
        for number, points in enumerate(series.values()):
            xs, gains = zip(*points, strict=True)
            lows, highs = zip(*(gain.edges for gain in gains), strict=True)
            axes.fill([*xs, *reversed(xs)], [*highs, *reversed(lows)], color=colour(number), alpha=0.13, linewidth=0)
            titles = [f"{x:g}: {gain.mean:+z.4f} [{gain.within('+z.4f')}]" for x, gain in points]
            line(axes, [(x, gain.mean) for x, gain in points], number, titles)

    return inline(build, list(series), x_label="strength", y_label="change")


def fidelity(marks: Sequence[Mark], *, x_label: str, y_label: str) -> Markup:
    """Arms as points with their intervals; those that no other beats are filled, joined and labelled."""
    places = [(mark.cost, mark.gain.mean) for mark in marks]
    best = front(places)

    def build(axes: "Axes") -> None:
        axes.axhline(0, **zero_line())
        axes.plot(*zip(*(places[i] for i in best), strict=True), color=colour(0), clip_on=False)
        for i, mark in enumerate(marks):
            axes.vlines(mark.cost, *mark.gain.edges, color=colour("muted"), alpha=0.5, linewidth=1)
            on = colour(0) if i in best else colour("muted")
            title = f"{mark.title}: {mark.gain.mean:+z.4f} at {mark.cost:.4f}"
            dots(axes, [places[i]], [title], color=on if i in best else colour("card"), edgecolors=on, linewidths=1.5)
        axes.set_xlim(0.0, 1.05 * max(mark.cost for mark in marks) or 1.0)
        _label(axes, [marks[i] for i in best])

    return inline(build, [], x_label=x_label, y_label=y_label)


def _label(axes: "Axes", marks: Sequence[Mark]) -> None:
    """Right of their points, left of those at the edge; those that would lie on another's are left out."""
    axes.autoscale_view()
    kept: list[tuple[float, float, float]] = []
    for mark in marks:
        x, y = axes.transData.transform((mark.cost, mark.gain.mean))
        wide, side = 6.2 * len(mark.label), 7
        if x + wide + side > WIDTH:
            side = -wide - 7
        if all(abs(y - b) > 11 or x + side + wide < left or right < x + side for left, right, b in kept):
            kept.append((x + side, x + side + wide, y))
            axes.annotate(mark.label, (mark.cost, mark.gain.mean), xytext=(side, 6), textcoords="offset points")
