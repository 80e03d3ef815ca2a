"""Charts as SVG by matplotlib: lines over updates, points, and what else its axes can draw; intervals as small bars.

In a page they take the colours and the letters of its style sheet, so that they follow its theme; alone they are drawn
in its light colours. The same data gives the same text.
"""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from align.figures.pages import TEMPLATES

if TYPE_CHECKING:  # matplotlib is loaded by the first chart, not by a command that draws none
    from matplotlib.axes import Axes

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 520, 240
NUM_COLOURS = 6
FEW = 4  # points below which there is no line: what two or three do is chance, and a line through them an alarm
LEAST = 0.25  # of its values' size that the axis of few points shows, or a change of 1 % would fill the chart
DENSE = 40  # points above which a line is drawn faint, under its running mean
_settings = Lock()  # matplotlib's are the whole program's, and pages are asked for by several threads


def lines(
    series: Mapping[str, Points],
    *,
    marks: Mapping[float, str] | None = None,
    x_label: str = "update",
    zero: bool = False,
    room: tuple[float, float] | None = None,
) -> Markup:
    """{name: [(x, y)]} as lines with a legend; `marks` are vertical lines {x: what happened}; with `zero` the axis goes
    down to it. Few points are dots alone, on an axis that shows `room`, or a range as their size deserves."""
    series = {name: points for name, line in series.items() if (points := _finite(line))}
    if not series:
        return Markup("")

    def build(axes: "Axes") -> None:
        few = all(len(points) < FEW for points in series.values())
        for number, points in enumerate(series.values()):
            (_dots_alone if few else line)(axes, points, number)
        for x, text in (marks or {}).items():
            axes.axvline(x, color=colour("muted"), linestyle=(0, (4, 3)), linewidth=1.5, url=text, zorder=1)
        shown = [0.0] * zero + [*(room or _around([y for points in series.values() for _, y in points]))] * few
        if shown:
            axes.update_datalim([(next(iter(series.values()))[0][0], y) for y in shown])
            axes.autoscale_view()

    return inline(build, list(series) if len(series) > 1 else [], x_label=x_label)


def _dots_alone(axes: "Axes", points: Points, number: int) -> None:
    dots(axes, points, _values(points), color=colour(number))


def _around(values: Sequence[float]) -> tuple[float, float]:
    """The least range to show around some values."""
    middle, half = (min(values) + max(values)) / 2, LEAST / 2 * max(map(abs, values))
    return middle - half, middle + half


def _values(points: Points) -> list[str]:
    return [f"{x:g}: {y:.4g}" for x, y in points]


def line(axes: "Axes", points: Points, number: int, titles: Sequence[str] | None = None) -> None:
    """One line of the `number`-th colour; few points are dots that say their title, or values; many a running mean."""
    if dense := len(points) > DENSE:
        axes.plot(*zip(*points, strict=True), color=colour(number), alpha=0.22, linewidth=1, clip_on=False)
        points = running_mean(points)
    axes.plot(*zip(*points, strict=True), color=colour(number), clip_on=False)
    if not dense:
        dots(axes, points, titles or _values(points), color=colour(number))


def dots(axes: "Axes", points: Points, titles: Sequence[str] = (), **how: Any) -> None:
    """Points that say their title when pointed at; `how` as matplotlib's scatter takes it."""
    how = {"s": 30, "linewidths": 0, "clip_on": False, "zorder": 3} | how
    axes.scatter(*zip(*points, strict=True), **how).set_urls(titles)


def scatter(points: Points, *, x_label: str, y_label: str) -> Markup:
    """Points with the two zero lines."""
    points = _finite(points)
    if not points:
        return Markup("")

    def build(axes: "Axes") -> None:
        dots(axes, points, color=colour(0), alpha=0.45)
        axes.axvline(0, **zero_line())
        axes.axhline(0, **zero_line())
        axes.margins(0.06)

    return inline(build, [], x_label=x_label, y_label=y_label)


def zero_line() -> dict[str, Any]:
    """How a zero line is drawn."""
    return {"color": colour("muted"), "linestyle": (0, (2, 3)), "linewidth": 1, "zorder": 1}


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


@cache
def palette() -> dict[str, str]:
    """{name: "#rrggbb"} of the style sheet's light theme."""
    from matplotlib.colors import to_hex

    light = (TEMPLATES / "style.css").read_text(encoding="utf-8").partition("@media")[0]
    return {name: to_hex(value) for name, value in re.findall(r"--(\w+): (#\w+)", light)}


def colour(which: int | str) -> str:
    """One of the palette; a line's by its number."""
    return palette()[f"c{which % NUM_COLOURS}" if isinstance(which, int) else which]


def inline(build: Callable[["Axes"], None], names: Sequence[str], *, x_label: str, y_label: str = "") -> Markup:
    """For a page: the chart below a legend of `names`, if there are some; no script or style of its own. What `build`
    draws are lines, surfaces, words and `dots`: of matplotlib's other collections the shapes would be lost."""
    drawn = re.sub(r"<defs><style.*?</defs>|font(-\w+)?: [^;\"]*; ?", "", _drawn(build, x_label, y_label))
    for name, value in reversed(palette().items()):
        drawn = drawn.replace(value, f"var(--{name})")
    legend = "".join(
        f'<span><i style="background:var(--c{i % NUM_COLOURS})"></i>{escape(name)}</span>'
        for i, name in enumerate(names)
    )
    drawn = f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{drawn}</svg>'
    return Markup(f'<div class="legend">{legend}</div>{drawn}' if names else drawn)


def alone(
    build: Callable[["Axes"], None], *, x_label: str, y_label: str = "", size: tuple[float, float] = (WIDTH, HEIGHT)
) -> str:
    """A file of its own, `size` in pixels, on white."""
    box = 'viewBox="0 0 {0:g} {1:g}" width="{0:g}" height="{1:g}"'.format(*size)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box}>{_drawn(build, x_label, y_label, size)}</svg>\n'


def _drawn(build: Callable[["Axes"], None], x_label: str, y_label: str, size: tuple[float, float] | None = None) -> str:
    """What is within the <svg>, without identifiers, which several charts of a page would share; with a size on white,
    its margins as its words need them."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    stream, (width, height) = io.StringIO(), size or (WIDTH, HEIGHT)
    with _settings, mpl.rc_context():
        mpl.rcdefaults()  # whatever the user's own file of settings says
        mpl.rcParams.update(_style())  # pyright: ignore[reportArgumentType, reportCallIssue]
        figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained" if size else None)
        figure.patch.set(visible=bool(size), facecolor="white")
        axes = figure.add_subplot(xlabel=x_label, ylabel=y_label)
        axes.patch.set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=x_label == "update"))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        build(axes)
        figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = stream.getvalue().partition("<svg ")[2].partition(">")[2].rpartition("</svg>")[0]
    text = re.sub(r"<!--.*?-->|\n *| clip-path=\"[^\"]*\"", "", text)
    dot = r'<use xlink:href="#\w+" x="([^"]+)" y="([^"]+)" style="([^"]*)"/>'
    text = re.sub(dot, r'<circle cx="\1" cy="\2" r="3" style="\3"/>', text)
    text = re.sub(r"<a xlink:href=(['\"])(.*?)\1[^>]*>", r"<g><title>\2</title>", text).replace("</a>", "</g>")
    text = re.sub(r'<defs><(path|clipPath) id=.*?</defs>|(?<=<g) id="[^"]*"', "", text)
    return re.sub(r' (d|x|y|cx|cy|transform)="[^"]*"', lambda places: re.sub(r"(\.\d)\d+", r"\1", places[0]), text)


def _style() -> dict[str, Any]:
    spines = dict.fromkeys((f"axes.spines.{side}" for side in ("left", "right", "top", "bottom")), False)
    words = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), colour("muted"))
    sizes = dict.fromkeys(("font.size", "axes.labelsize", "xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 11)
    return {
        **spines, **words, **sizes, "svg.fonttype": "none", "svg.hashsalt": "align", "text.parse_math": False,
        "font.sans-serif": ["DejaVu Sans"], "legend.frameon": False, "xtick.bottom": False, "ytick.left": False,
        "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True, "grid.color": colour("grid"),
        "grid.linewidth": 1, "lines.linewidth": 2, "axes.xmargin": 0, "axes.ymargin": 0.06, "axes.labelpad": 7,
        "axes.formatter.useoffset": False, "axes.formatter.limits": (-4, 5),
        "figure.subplot.left": 60 / WIDTH, "figure.subplot.right": 1 - 14 / WIDTH,
        "figure.subplot.bottom": 38 / HEIGHT, "figure.subplot.top": 1 - 16 / HEIGHT,
    }  # fmt: skip


def running_mean(points: Points) -> Points:
    """Over a window of a tenth of the points."""
    half = max(1, len(points) // 20)
    windows = [points[max(0, i - half) : i + half + 1] for i in range(len(points))]
    return [(x, sum(y for _, y in near) / len(near)) for (x, _), near in zip(points, windows, strict=True)]


def _finite(points: Points) -> Points:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
