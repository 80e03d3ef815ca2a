"""The figures of docs/lab/results.md: plain SVG of the project's own drawing."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from align.figures import charts
from align.figures.statistics import Interval

STYLE = (
    "text{font:11px sans-serif;fill:#6b7078}.name{font-size:12px;fill:#1f2328}.grid{stroke:#e6e4df}"
    ".mark{stroke:#6b7078;stroke-dasharray:4 3;stroke-width:1.5}"
)
PALETTE = ("#2563a8", "#d9480f", "#2b8a3e", "#8452b5", "#b08800", "#0c8599")


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    box = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
    background = f'<rect width="{width:g}" height="{height:g}" fill="#fff"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box}><style>{STYLE}</style>{background}{"".join(parts)}</svg>\n'


def forest(gains: Mapping[str, Mapping[str, Any]], column: str) -> str:
    """One interval a method, best first."""
    values = [told["gold"] for told in gains.values()] or [Interval(mean=0, low=0, high=0)]
    low, high = min(0.0, *(v.edges[0] for v in values)), max(0.0, *(v.edges[1] for v in values))
    left, width, row = 170, 620, 26
    height = row * len(gains) + 50

    def x(value: float) -> float:
        return left + 10 + (value - low) / ((high - low) or 1.0) * (width - left - 30)

    parts = []
    for tick in charts.ticks(low, high or 1.0, 6):
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="10" y2="{height - 34}"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{height - 20}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<line x1="{x(0):.1f}" x2="{x(0):.1f}" y1="10" y2="{height - 34}" stroke="#1f2328"/>')
    for number, (name, value) in enumerate(zip(gains, values, strict=False)):
        y = 24 + row * number
        colour = PALETTE[2] if value.edges[0] > 0 else "#c92a2a" if value.edges[1] < 0 else "#6b7078"
        parts.append(f'<text class="name" x="{left}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        parts.append(
            f'<line x1="{x(value.edges[0]):.1f}" x2="{x(value.edges[1]):.1f}" y1="{y}" y2="{y}" stroke="{colour}" '
        )
        parts.append('stroke-width="4" stroke-linecap="round" opacity="0.45"/>')
        parts.append(f'<circle cx="{x(value.mean):.1f}" cy="{y}" r="4.5" fill="{colour}"/>')
    middle = (left + width) / 2
    parts.append(
        f'<text x="{middle:g}" y="{height - 4}" text-anchor="middle">change in gold utility, equal {column}</text>'
    )
    return _svg(width, height, parts)


def lines(series: Mapping[str, charts.Points], x_label: str, marks: Mapping[float, str]) -> str:
    points = [point for line in series.values() for point in line]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    frame = charts.Frame(min(xs), max(xs), min(ys), max(ys))
    parts = [frame.axes(x_label)]
    for place, text in marks.items():
        x = frame.x(place)
        parts.append(
            f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{charts.TOP}" y2="{charts.HEIGHT - charts.BOTTOM}"/>'
        )
        parts.append(f'<text x="{x + 4:.1f}" y="{charts.TOP + 10}">{text}</text>')
    for number, (name, line) in enumerate(series.items()):
        colour, y = PALETTE[number % len(PALETTE)], charts.HEIGHT + 16 + 15 * (number // 4)
        path = " ".join(f"{frame.x(a):.1f},{frame.y(b):.1f}" for a, b in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(
            f'<text x="{charts.LEFT + 118 * (number % 4)}" y="{y}" style="fill:{colour}">{escape(name)}</text>'
        )
    return _svg(charts.WIDTH, charts.HEIGHT + 24 + 15 * ((len(series) - 1) // 4), parts)


def points(series: Mapping[str, charts.Points], x_label: str, y_label: str, *, joined: bool = False) -> str:
    """Named points, or paths of them, in a square of two measures that holds (0, 0); rings where colours run out."""
    left, top, side, row = 60, 14, 420, 16
    everything = [point for line in series.values() for point in line]
    ends = [[0.0, *(p[axis] for p in everything)] for axis in (0, 1)]
    low, high = [min(values) for values in ends], [max(values) for values in ends]
    pad = [0.05 * ((b - a) or 1.0) for a, b in zip(low, high, strict=True)]

    def place(value: float, axis: int) -> float:
        share = (value - low[axis] + pad[axis]) / (high[axis] - low[axis] + 2 * pad[axis])
        return left + side * share if axis == 0 else top + side * (1 - share)

    parts = []
    for tick in charts.ticks(low[0], high[0], 6):
        x = place(tick, 0)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{top + side}"/>')
        parts.append(f'<text x="{x:.1f}" y="{top + side + 16}" text-anchor="middle">{tick:g}</text>')
    for tick in charts.ticks(low[1], high[1], 6):
        y = place(tick, 1)
        parts.append(f'<line class="grid" x1="{left}" x2="{left + side}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for number, (name, line) in enumerate(series.items()):
        colour, legend = PALETTE[number % len(PALETTE)], top + 12 + row * number
        drawn = [(place(a, 0), place(b, 1)) for a, b in line]
        hollow = 'fill="#fff" stroke-width="2" ' if number >= len(PALETTE) else f'fill="{colour}" '
        if joined:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in drawn)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" {hollow}stroke="{colour}"/>' for x, y in drawn]
        parts.append(f'<circle cx="{left + side + 20}" cy="{legend - 4}" r="4" {hollow}stroke="{colour}"/>')
        parts.append(f'<text class="name" x="{left + side + 30}" y="{legend}">{escape(name)}</text>')
    middle = top + side / 2
    parts.append(f'<text x="{left + side / 2}" y="{top + side + 34}" text-anchor="middle">{x_label}</text>')
    parts.append(f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">{y_label}</text>')
    return _svg(left + side + 210, top + side + 44, parts)
