"""Charts: values where they belong, words that are only words, and the same text for the same data."""

import re
import subprocess
import sys
from operator import sub

import matplotlib as mpl

from align.figures import charts

NASTY = '<img src=x onerror="alert(1)"> $x^{'


def paths(drawn: str, colour: str) -> list[list[tuple[float, float]]]:
    """The lines of a colour, in the order of drawing."""
    found = re.findall(rf'<path d="([^"]*)" style="fill: none; stroke: {re.escape(colour)}', drawn)
    return [[(float(x), float(y)) for x, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path)] for path in found]


def heights(drawn: str) -> list[float]:
    """Of the dots, from the top."""
    return [float(y) for y in re.findall(r'cy="([\d.]+)"', drawn)]


def test_lines_lie_where_their_values_are():
    rise = [(0, 0.0), (3, 0.3), (6, 0.6), (10, 1.0)]
    drawn = charts.lines({"a": rise, "b & c": [(0, 1.0), (5, float("nan")), (10, 0.0)]})
    ((x0, y0), *_, (x1, y1)), (first, last) = paths(drawn, "var(--c0)")[0], paths(drawn, "var(--c1)")[0]
    assert (first, last) == ((x0, y1), (x1, y0)) and y0 > y1, "y grows upwards"
    assert 0 < x0 < x1 < charts.WIDTH and 0 < y1 < y0 < charts.HEIGHT
    assert "b &amp; c" in drawn and charts.lines({"none": []}) == "" == charts.scatter([], x_label="x", y_label="y")
    assert "nan" not in charts.lines({"a": [(0, 2.0), (1, 2.0)]})


def test_an_axis_with_zero_in_view():
    points = [(0, 0.98), (1, 0.99), (2, 0.99), (3, 1.0)]
    ys = [heights(drawn) for drawn in (charts.lines({"a": points}), charts.lines({"a": points}, zero=True))]
    moved = [abs(one[0] - one[-1]) for one in ys]
    assert moved[0] > 100 and moved[1] < 10, "a change of 2 % does not fill the chart"


def test_two_or_three_points_are_no_curve_and_no_alarm():
    few = charts.lines({"a": [(0, 0.467), (3, 0.457), (6, 0.458)]})
    assert not paths(few, "var(--c0)") and few.count("<circle") == few.count("<title>") == 3
    top, bottom, _ = heights(few)
    assert 5 < bottom - top < 25, "2 % of the value: seen, and no fall"
    first, last = heights(charts.lines({"a": [(0, 1.0), (3, 0.5)]}))
    assert last - first > 150, "half of it is one"
    assert 15 < abs(sub(*heights(charts.lines({"a": [(0, 0.0), (1, -0.1)]}, room=(-0.5, 0.5))))) < 30
    assert paths(charts.lines({"a": [(0, 0.1), (1, 0.2), (2, 0.3), (3, 0.4)]}), "var(--c0)")
    assert "nan" not in charts.lines({"a": [(0, 0.0)]}), "of one point, and nothing, there is an axis too"


def test_there_is_no_half_update():
    few = charts.lines({"a": [(1, 0.1), (2, 0.2), (3, 0.3)]})
    assert ">2</text>" in few and ">1.5</text>" not in few
    assert ">2.4</text>" in charts.lines({"a": [(2, 0.1), (3, 0.3)]}, x_label="strength")


def test_dense_curves_are_shown_under_their_running_mean():
    points = [(float(i), float(i % 2)) for i in range(100)]
    drawn = charts.lines({"a": points})
    assert len(paths(drawn, "var(--c0)")) == 2 and "<circle" not in drawn
    smooth = charts.running_mean(points)
    assert len(smooth) == 100 and all(abs(y - 0.5) < 0.1 for _, y in smooth[10:-10])


def test_what_is_said_is_text_and_nothing_is_shared():
    """Words of a recipe reach a page by legend, title and axis; identifiers would be those of all its charts."""
    line = charts.lines({NASTY: [(0, 0), (1, 1)], "b": [(0, 1)]}, marks={1.0: NASTY}, x_label=NASTY)
    drawn = "".join([line, charts.scatter([(0, 1), (1, 2)], x_label=NASTY, y_label=NASTY)])
    assert "<img" not in drawn and drawn.count("&lt;img") == 5 and drawn.count("<title>") == 4
    assert not re.search(r'\bid="|href|url\(|<use|<style|<a\b|#[0-9a-f]{6}|font', drawn)


def test_the_same_data_gives_the_same_text_whatever_the_users_settings():
    def both() -> str:
        return "".join([charts.lines({"a": [(0, 0)]}), charts.alone(lambda axes: axes.plot([0, 1]), x_label="x")])

    plain = both()
    with mpl.rc_context({"lines.linewidth": 7, "svg.fonttype": "path", "axes.facecolor": "black"}):
        assert both() == plain and mpl.rcParams["lines.linewidth"] == 7
    assert plain.count("<svg") == 2 and "</text>" in plain.partition("xmlns")[2]


def test_colours_are_those_of_both_themes():
    from align.figures.pages import TEMPLATES

    dark = (TEMPLATES / "style.css").read_text().partition("@media")[2]
    names = [*(f"c{i}" for i in range(charts.NUM_COLOURS)), "ink", "muted", "grid", "card", "good", "bad"]
    assert all(re.fullmatch("#[0-9a-f]{6}", charts.colour(name)) and f"--{name}:" in dark for name in names)


def test_words_of_a_chart_can_be_read_on_a_phone():
    """At 400 px a chart is drawn at two thirds of its size, and its words with it: they must be larger there."""
    sheet = (charts.TEMPLATES / "style.css").read_text()
    assert "container-type: inline-size" in sheet.partition(".card {")[2].partition("}")[0]
    rules = re.findall(r"@container \(max-width: (\d+)px\) { \.chart text { font-size: (\d+)px", sheet)
    sizes = [(int(width), int(size)) for width, size in rules]
    assert sizes == sorted(sizes, reverse=True), "the narrowest is the last word"

    def seen(width: int) -> float:
        fitting = [size for most, size in sizes if width <= most] or [11]
        return fitting[-1] * width / charts.WIDTH

    assert min(map(seen, range(288, 461))) >= 11 and seen(400 - 2 * 12 - 2 * 16) >= 11
    assert seen(496) == 11 * 496 / charts.WIDTH, "two beside each other, as at 1280 px, stay as they are drawn"


def test_no_command_pays_for_charts_that_it_does_not_draw():
    told = "import sys, align.figures.charts, align.evaluation.charts; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_an_interval_is_coloured_where_it_leaves_zero_out():
    cases = [
        (0.1, 0.3, True, "good"),
        (-0.3, -0.1, True, "bad"),
        (-0.1, 0.3, True, "muted"),
        (0.1, 0.3, False, "muted"),
    ]
    for low, high, sure, kind in cases:
        drawn = charts.interval((low + high) / 2, low, high, 1.0, sure=sure)
        assert drawn.count(f"var(--{kind})") == 2
