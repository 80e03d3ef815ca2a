"""Small charts as inline SVG, drawn without a library: lines over updates, points, and intervals.

Colours come from the page's CSS variables (--c0 .. --c5, --ink, --muted, --grid), so that a chart follows its theme.
"""

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 520, 240
LEFT, RIGHT, TOP, BOTTOM = 60, 14, 14, 38
NUM_COLOURS = 6
DENSE = 40  # points above which a line is drawn faint, under its running mean


def lines(
    series: Mapping[str, Points],
    *,
    marks: Mapping[float, str] | None = None,
    x_label: str = "update",
    zero: bool = False,
) -> Markup:
    """{name: [(x, y)]} as lines with a legend; `marks` are vertical lines {x: what happened}; with `zero` the axis goes
    down to it."""
    series = {name: _finite(points) for name, points in series.items()}
    series = {name: points for name, points in series.items() if points}
    if not series:
        return Markup("")
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    frame = Frame(min(xs), max(xs), min(*ys, 0.0) if zero else min(ys), max(*ys, 0.0) if zero else max(ys))
    parts = [frame.axes(x_label)]
    for x, text in (marks or {}).items():
        place = frame.x(x)
        parts.append(
            f'<line class="mark" x1="{place:.1f}" x2="{place:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}">'
            f"<title>{escape(text)}</title></line>"
        )
    for number, points in enumerate(series.values()):
        colour = f"var(--c{number % NUM_COLOURS})"
        if len(points) > DENSE:
            parts.append(_line(frame, points, colour, 'stroke-opacity="0.22"', 1))
            points = running_mean(points)
        parts.append(_line(frame, points, colour, "", 2))
        if len(points) <= DENSE:
            parts += [
                f'<circle cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="2.6" fill="{colour}">'
                f"<title>{x:g}: {y:.4g}</title></circle>"
                for x, y in points
            ]
    return _figure(parts, list(series))


def scatter(points: Points, *, x_label: str, y_label: str) -> Markup:
    """Points with the two zero lines."""
    points = _finite(points)
    if not points:
        return Markup("")
    xs, ys = [x for x, _ in points], [y for _, y in points]
    frame = Frame(min(*xs, 0), max(*xs, 0), min(*ys, 0), max(*ys, 0))
    parts = [frame.axes(x_label, y_label)]
    x, y = frame.x(0), frame.y(0)
    parts.append(f'<line class="zero" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    parts.append(f'<line class="zero" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    for a, b in points:
        parts.append(f'<circle cx="{frame.x(a):.1f}" cy="{frame.y(b):.1f}" r="3" fill="var(--c0)" opacity="0.45"/>')
    return _figure(parts, [])


def interval(mean: float, low: float, high: float, limit: float, *, sure: bool = True) -> Markup:
    """One interval on a scale from -limit to limit, zero in the middle; coloured where it leaves zero out and is
    `sure`, which a caller of many denies."""

    def place(value: float) -> float:
        return 90 + 80 * max(-1.0, min(1.0, value / (limit or 1.0)))

    kind = "muted" if not sure else "good" if low > 0 else "bad" if high < 0 else "muted"
    return Markup(
        '<svg class="interval" viewBox="0 0 180 18" width="180" height="18">'
        '<line x1="90" x2="90" y1="1" y2="17" stroke="var(--grid)"/>'
        f'<line x1="{place(low):.1f}" x2="{place(high):.1f}" y1="9" y2="9" stroke="var(--{kind})" stroke-width="4" '
        'stroke-linecap="round" opacity="0.5"/>'
        f'<circle cx="{place(mean):.1f}" cy="9" r="4.5" fill="var(--{kind})"/></svg>'
    )


class Frame:
    """The plotting area: data to places, and the axes."""

    def __init__(self, x_min: float, x_max: float, y_min: float, y_max: float):
        self.x_min, self.x_max = (x_min, x_max) if x_max > x_min else (x_min - 0.5, x_max + 0.5)
        room = 0.06 * (y_max - y_min) or 0.05 * abs(y_max) or 0.5
        self.y_min, self.y_max = y_min - room, y_max + room

    def x(self, value: float) -> float:
        return LEFT + (value - self.x_min) / (self.x_max - self.x_min) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.y_min) / (self.y_max - self.y_min) * (HEIGHT - TOP - BOTTOM)

    def axes(self, x_label: str, y_label: str = "") -> str:
        parts = []
        marks = ticks(self.y_min, self.y_max, 5)
        for value, said in zip(marks, numbers(marks), strict=True):
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{LEFT - 7}" y="{y + 3.5:.1f}" text-anchor="end">{said}</text>')
        marks = ticks(self.x_min, self.x_max, 6, least=1.0 if x_label == "update" else 0.0)
        for value, said in zip(marks, numbers(marks), strict=True):
            parts.append(f'<text x="{self.x(value):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{said}</text>')
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(f'<text x="{middle:g}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x_label)}</text>')
        if y_label:
            parts.append(
                f'<text transform="translate(11 {HEIGHT / 2:g}) rotate(-90)" text-anchor="middle">'
                f"{escape(y_label)}</text>"
            )
        return "".join(parts)


def ticks(low: float, high: float, count: int, least: float = 0.0) -> list[float]:
    """About `count` round numbers within [low, high], no nearer to each other than `least`."""
    raw = max((high - low) / count, least)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw)
    first = math.ceil(low / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _figure(parts: Sequence[str], names: Sequence[str]) -> Markup:
    legend = "".join(
        f'<span><i style="background:var(--c{i % NUM_COLOURS})"></i>{escape(name)}</span>'
        for i, name in enumerate(names)
    )
    drawn = f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'
    return Markup(f'<div class="legend">{legend}</div>{drawn}' if len(names) > 1 else drawn)


def _line(frame: Frame, points: Points, colour: str, more: str, width: int) -> str:
    path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}" {more}/>'


def running_mean(points: Points) -> Points:
    """Over a window of a tenth of the points."""
    half = max(1, len(points) // 20)
    windows = [points[max(0, i - half) : i + half + 1] for i in range(len(points))]
    return [(x, sum(y for _, y in near) / len(near)) for (x, _), near in zip(points, windows, strict=True)]


def _finite(points: Points) -> Points:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def numbers(values: Sequence[float]) -> list[str]:
    """As text, with as many digits as tell them apart."""
    if all(value == 0 or 1e-3 <= abs(value) < 1e5 for value in values):
        return [f"{value:g}" for value in values]
    said = ["0" if value == 0 else f"{value:.0e}" for value in values]
    digits = 1
    while len(set(said)) < len(set(values)) and digits < 12:
        said = ["0" if value == 0 else f"{value:.{digits}e}" for value in values]
        digits += 1
    return said
