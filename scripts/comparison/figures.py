"""The figures of docs/lab/results.md, by the charts of the reports."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes

from align.figures import charts
from align.figures.statistics import Interval


def forest(gains: Mapping[str, Mapping[str, Any]], column: str) -> str:
    """One interval a method, best first."""
    values = [told["gold"] for told in gains.values()] or [Interval(mean=0, low=0, high=0)]

    def build(axes: Axes) -> None:
        axes.axvline(0, color=charts.colour("ink"), linewidth=1)
        for place, value in enumerate(values):
            low, high = value.edges
            kind = charts.colour("good" if low > 0 else "bad" if high < 0 else "muted")
            axes.hlines(place, low, high, color=kind, alpha=0.45, linewidth=4, capstyle="round")
            charts.dots(axes, [(value.mean, place)], color=kind)
        axes.set_yticks(range(len(gains)), list(gains), color=charts.colour("ink"))
        axes.set_ylim(len(gains) - 0.4, -0.6)
        axes.grid(False, axis="y")
        axes.grid(True, axis="x")
        axes.margins(x=0.04)

    return charts.alone(build, x_label=f"change in gold utility, equal {column}", size=(620, 26 * len(gains) + 50))


def lines(series: Mapping[str, charts.Points], x_label: str, marks: Mapping[float, str]) -> str:
    """Lines, or a dot where there is one point, with their legend below; `marks` are vertical lines with a word beside
    them."""

    columns = 4 if max(map(len, series), default=0) <= 16 else 3
    rows = -(-len(series) // columns)

    def build(axes: Axes) -> None:
        for number, (name, points) in enumerate(series.items()):
            dashed = "--" if number >= charts.NUM_COLOURS else "-"  # where colours run out
            hollow = "none" if number >= charts.NUM_COLOURS else "full"
            dot: dict[str, Any] = {"marker": "o", "fillstyle": hollow} if len(points) == 1 else {}
            axes.plot(*zip(*points, strict=True), color=charts.colour(number), linestyle=dashed, label=name, **dot)
        for place, text in marks.items():
            axes.axvline(place, color=charts.colour("muted"), linestyle=(0, (4, 3)), linewidth=1.5)
            axes.annotate(
                text, (place, 1), xycoords=("data", "axes fraction"), xytext=(4, -10), textcoords="offset points"
            )
        axes.figure.legend(
            loc="outside lower left", ncols=columns, handlelength=1.6, columnspacing=1.2, labelcolor="linecolor"
        )

    return charts.alone(build, x_label=x_label, size=(charts.WIDTH, charts.HEIGHT + 9 + 15 * rows))


def points(series: Mapping[str, charts.Points], x_label: str, y_label: str, *, joined: bool = False) -> str:
    """Named points, or paths of them, in a square of two measures that holds (0, 0); rings where colours run out."""

    def build(axes: Axes) -> None:
        for number, (name, places) in enumerate(series.items()):
            colour = charts.colour(number)
            if joined:
                axes.plot(*zip(*places, strict=True), color=colour, linewidth=1.5)
            inside = "white" if number >= charts.NUM_COLOURS else colour
            charts.dots(axes, places, color=inside, edgecolors=colour, linewidths=2, label=name)
        axes.update_datalim([(0.0, 0.0)])
        axes.margins(0.05)
        axes.grid(True, axis="both")
        axes.set_box_aspect(1)
        axes.figure.legend(loc="outside right upper", labelcolor=charts.colour("ink"))

    return charts.alone(build, x_label=x_label, y_label=y_label, size=(690, 478))
