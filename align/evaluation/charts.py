"""The two charts of a sweep: gain by strength with its intervals, and the front of reward against fidelity."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

from align.evaluation.statistics import front
from align.figures.charts import HEIGHT, LEFT, NUM_COLOURS, RIGHT, WIDTH, Frame
from align.figures.statistics import Interval


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
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, gain in points for y in gain.edges]
    frame = Frame(min(xs), max(xs), min(*ys, 0.0), max(*ys, 0.0))
    parts = [frame.axes("strength", "change"), _zero(frame)]
    for number, points in enumerate(series.values()):
        colour = f"var(--c{number % NUM_COLOURS})"
        edge = [(x, gain.edges[1]) for x, gain in points] + [(x, gain.edges[0]) for x, gain in reversed(points)]
        parts.append(f'<polygon points="{_path(frame, edge)}" fill="{colour}" opacity="0.13"/>')
        line = _path(frame, [(x, gain.mean) for x, gain in points])
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for x, gain in points:
            parts.append(
                f'<circle cx="{frame.x(x):.1f}" cy="{frame.y(gain.mean):.1f}" r="3" fill="{colour}">'
                f"<title>{x:g}: {gain.mean:+.4f} [{gain.within('+.4f')}]</title></circle>"
            )
    names = "".join(
        f'<span><i style="background:var(--c{i % NUM_COLOURS})"></i>{escape(name)}</span>'
        for i, name in enumerate(series)
    )
    return Markup(f'<div class="legend">{names}</div>{_svg(parts)}')


def fidelity(marks: Sequence[Mark], *, x_label: str, y_label: str) -> Markup:
    """Arms as points with their intervals; those that no other beats are filled, joined and labelled."""
    lows, highs = [mark.gain.edges[0] for mark in marks], [mark.gain.edges[1] for mark in marks]
    frame = Frame(0.0, 1.05 * max(mark.cost for mark in marks) or 1.0, min(*lows, 0.0), max(*highs, 0.0))
    best = front([(mark.cost, mark.gain.mean) for mark in marks])
    parts = [frame.axes(x_label, y_label), _zero(frame)]
    line = _path(frame, [(marks[i].cost, marks[i].gain.mean) for i in best])
    parts.append(f'<polyline class="front" points="{line}" fill="none"/>')
    for i, mark in enumerate(marks):
        x, y = frame.x(mark.cost), frame.y(mark.gain.mean)
        low, high = map(frame.y, mark.gain.edges)
        kind = "on" if i in best else "off"
        parts.append(f'<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
        parts.append(
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"><title>{escape(mark.title)}: '
            f"{mark.gain.mean:+.4f} at {mark.cost:.4f}</title></circle>"
        )
    parts += [_label(x, y, text) for x, y, text in _places(frame, [marks[i] for i in best])]
    return Markup(_svg(parts))


def _places(frame: Frame, marks: Sequence[Mark]) -> list[tuple[float, float, str]]:
    """Where the labels go: right of their point, those that would lie on another's left out."""
    kept: list[tuple[float, float, str]] = []
    for mark in marks:
        x, y = frame.x(mark.cost) + 7, frame.y(mark.gain.mean) - 6
        wide = 6.2 * len(mark.label)
        if x + wide > WIDTH:
            x -= wide + 14
        if all(abs(y - b) > 11 or x + wide < a or a + 6.2 * len(text) < x for a, b, text in kept):
            kept.append((x, y, mark.label))
    return kept


def _label(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _zero(frame: Frame) -> str:
    y = frame.y(0)
    return f'<line class="zero" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _path(frame: Frame, points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)


def _svg(parts: Sequence[str]) -> str:
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'
