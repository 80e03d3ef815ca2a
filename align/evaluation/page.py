"""evaluation.html: an evaluation in one file that needs nothing else; tables, sweeps, and the images to browse."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from align.evaluation.benchmarks import Item
from align.evaluation.charts import Mark, by_strength, fidelity
from align.evaluation.files import Folder
from align.evaluation.grid import grid
from align.evaluation.results import ArmResult, Evaluation, Measured
from align.evaluation.statistics import Gain
from align.figures import charts
from align.figures.statistics import LEAST, Interval, survivors
from align.reports.page import STYLE

PAGE = "evaluation.html"
FEW = 3  # arms whose tables are all shown at once
OWN_STYLE, SCRIPT = Path(__file__).with_name("page.css"), Path(__file__).with_name("page.js")


def page(found: Evaluation, measured: Sequence[Measured], items: Sequence[Item], folder: Folder) -> str:
    """The whole page."""
    held_out = [label for label in found.baseline.scores if label not in found.trained_on]
    verdict = held_out[-1] if held_out else next(iter(found.baseline.scores))
    sections = [
        _head(found),
        _section("Gain", *_gains(found), _looked(found)),
        _section("Scores", _scores(found) if not found.arms else ""),
        _section("Strength", _cards(_sweeps(found))),
        _section("Reward and fidelity", _fronts(found, verdict)),
        _section("By category", *_categories(found)),
        _section("Change, diversity, drift", _beside(found)),
        _section("Images", grid(measured, items, folder, verdict)),
        _section("How it was made", _facts(found)),
    ]
    style = STYLE.read_text(encoding="utf-8") + OWN_STYLE.read_text(encoding="utf-8")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(_title(found))}</title><style>{style}</style></head><body><main>{''.join(sections)}</main>"
        f"<script>{SCRIPT.read_text(encoding='utf-8')}</script></body></html>\n"
    )


def _title(found: Evaluation) -> str:
    if not found.arms:
        return found.baseline.label
    one = len(found.arms) == 1
    return f"{found.arms[0].label if one else f'{len(found.arms)} arms'} against {found.baseline.label}"


def _section(title: str, *parts: str) -> str:
    """Nothing where there is nothing to show."""
    body = "".join(parts)
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def _cards(cards: Iterable[str]) -> str:
    body = "".join(cards)
    return f'<div class="cards">{body}</div>' if body else ""


def _card(title: str, body: str) -> str:
    return f'<figure class="card"><figcaption>{escape(title)}</figcaption>{body}</figure>'


def _table(head: Sequence[str], rows: Iterable[str]) -> str:
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _head(found: Evaluation) -> str:
    facts = {
        "prompts": f"{found.num_prompts:,}",
        "images of each": str(found.num_images),
        "seed": str(found.seed),
        "categories": str(len(found.categories) or "none"),
    }
    chips = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in facts.items())
    told = f"{found.prompts} on {found.model}; {found.sampling}"
    return (
        f'<header><p class="kicker">{escape(told)}</p><h1>{escape(_title(found))}</h1>'
        f'<div class="facts">{chips}</div></header>'
    )


def _gains(found: Evaluation) -> Iterable[str]:
    """A table for each arm; of many, first one of all, and the rest folded away."""
    tables = {arm.label: _gains_of(arm, found.trained_on, limit(found)) for arm in found.arms}
    if len(found.arms) <= FEW:
        yield from tables.values()
        return
    rows = []
    for arm in found.arms:
        cells = "".join(_change(gain, limit(found)) for gain in arm.scores.values())
        rows.append(f"<tr><th>{escape(arm.label)}</th>{cells}</tr>")
    yield _table(("change, 95 %", *found.baseline.scores), rows)
    for label, table in tables.items():
        yield f"<details><summary>{escape(label)}</summary>{table}</details>"


def limit(found: Evaluation) -> float:
    """The largest p that is coloured, given all cells that a page shows."""
    return survivors([gain.p for arm in found.arms for gain in _cells(arm)])


def _cells(arm: ArmResult) -> list[Gain]:
    return [gain for scores in (arm.scores, *arm.categories.values()) for gain in scores.values()]


def _looked(found: Evaluation) -> str:
    number = sum(len(_cells(arm)) for arm in found.arms)
    note = (
        f"{number} changes were looked at on this page. Coloured are those that survive so many (Holm): where "
        f"nothing has changed, no cell is, on 95 of 100 pages. No interval is given for fewer than {LEAST} prompts."
    )
    return f'<p class="small">{note}</p>' if number else ""


def _gains_of(arm: ArmResult, trained_on: Sequence[str], most: float) -> str:
    rows = [
        _gain(label, "trained on" if label in trained_on else "held out", g, most) for label, g in arm.scores.items()
    ]
    head = (arm.label, "before", "after", "change, 95 %", "in standard deviations, -1 to 1", "better on, 95 %")
    return _table(head, rows)


def _gain(title: str, role: str, gain: Gain, most: float) -> str:
    change, unit = gain.difference, gain.std_before or 1.0
    low, high = change.edges
    sure = gain.p is not None and gain.p <= most
    bar = charts.interval(change.mean / unit, low / unit, high / unit, 1.0, sure=sure)
    rates = (
        ""
        if gain.wins.low is None or gain.wins.high is None
        else (f"{100 * gain.wins.low:.0f} to {100 * gain.wins.high:.0f}")
    )
    return (
        f'<tr><th>{escape(title)}<small>{escape(role)}</small></th><td class="n">{gain.before.mean:.4f}</td>'
        f'<td class="n">{gain.after.mean:.4f}</td><td class="n">{change.mean:+.4f}{_range(change)}</td>'
        f'<td>{bar}</td><td class="n">{100 * gain.wins.mean:.0f} %'
        f"<small>{rates}</small></td></tr>"
    )


def _range(interval: Interval) -> str:
    return f"<small>{interval.within('+.4f', ' to ')}</small>"


def _scores(found: Evaluation) -> str:
    rows = []
    categories = {"all": found.baseline.scores, **found.baseline.categories}
    for category, scores in categories.items():
        cells = "".join(f'<td class="n">{mean.mean:.4f}{_range(mean)}</td>' for mean in scores.values())
        rows.append(f"<tr><th>{escape(category)}</th>{cells}</tr>")
    return _table(("", *found.baseline.scores), rows)


def _sweeps(found: Evaluation) -> Iterable[str]:
    """A chart for each adapter, or fixed mixture, that was tried at several strengths."""
    series: dict[str, dict[str, list[tuple[float, Interval]]]] = defaultdict(lambda: defaultdict(list))
    for arm in found.arms:
        if len(arm.adapters) != 1:
            continue
        ((adapter, strength),) = arm.adapters.items()
        for label, gain in arm.scores.items():
            series[adapter][label].append((strength, _over(gain.difference, gain.std_before or 1.0)))
    for adapter, scores in series.items():
        if len(next(iter(scores.values()))) > 1:
            ordered = {label: sorted(points, key=lambda point: point[0]) for label, points in scores.items()}
            name = next(arm.label.rpartition(" x ")[0] for arm in found.arms if list(arm.adapters) == [adapter])
            yield _card(f"{name}: change in standard deviations of the baseline's scores", by_strength(ordered))


def _over(gain: Interval, unit: float) -> Interval:
    low, high = (None if edge is None else edge / unit for edge in (gain.low, gain.high))
    return Interval(mean=gain.mean / unit, low=low, high=high)


def _fronts(found: Evaluation, verdict: str) -> str:
    """Gain in a reward against the distance of the images from the baseline's, for two arms or more."""
    if len(found.arms) < 2:
        return ""
    labels = dict.fromkeys([*found.trained_on[:1], verdict])
    cards = []
    for label in labels:
        marks = [Mark(arm.change.mean, arm.scores[label].difference, _short(arm), arm.label) for arm in found.arms]
        drawn = fidelity(marks, x_label="change of the images (0: the baseline's)", y_label=f"change in {label}")
        cards.append(_card(f"{label}: filled and joined are the arms that no other beats in both", drawn))
    return _cards(cards)


def _short(arm: ArmResult) -> str:
    """The weights alone, where there are some."""
    return ", ".join(f"{weight:g}" for weight in arm.adapters.values()) or arm.label


def _categories(found: Evaluation) -> Iterable[str]:
    """A table for each arm: the categories, and the change in each score; the last one unfolded."""
    for arm in found.arms:
        if not arm.categories:
            continue
        rows = []
        for category, scores in {"all": arm.scores, **arm.categories}.items():
            count = next(iter(scores.values())).num_prompts
            cells = "".join(_change(gain, limit(found)) for gain in scores.values())
            rows.append(f"<tr><th>{escape(category)}<small>{count} prompts</small></th>{cells}</tr>")
        table = _table(("", *arm.scores), rows)
        opened = " open" if arm is found.arms[-1] else ""
        yield f"<details{opened}><summary>{escape(arm.label)}</summary>{table}</details>"


def _change(gain: Gain, most: float) -> str:
    """Green or red where the change survives the number of cells."""
    change = gain.difference
    sure = gain.p is not None and gain.p <= most
    kind = ("up" if change.mean > 0 else "down") if sure else ""
    return f'<td class="n {kind}">{change.mean:+.4f}{_range(change)}</td>'


def _beside(found: Evaluation) -> str:
    rows = []
    for arm in found.arms:
        diverse = "one image a prompt"
        if (d := arm.diversity) is not None:
            diverse = f"{d.before.mean:.4f} to {d.after.mean:.4f}{_range(d.difference)}"
        drift = "" if arm.drift is None else f"{arm.drift:.3g}"
        rows.append(
            f'<tr><th>{escape(arm.label)}</th><td class="n">{arm.change.mean:.4f}</td><td class="n">{diverse}</td>'
            f'<td class="n">{drift}</td></tr>'
        )
    if not rows:
        return ""
    note = (
        "Change: distance of an image from the baseline's of the same prompt and seed. Diversity: mean distance of a "
        "prompt's images among themselves. Both are RMS over pixels averaged down to at most 16 x 16. Drift: mean "
        "squared change of the network's output on the baseline's trajectories."
    )
    return _table(("", "change of the images", "diversity, before to after", "drift"), rows) + (
        f'<p class="small">{escape(note)}</p>'
    )


def _facts(found: Evaluation) -> str:
    rows: Mapping[str, str] = {
        "adapters": ", ".join(dict.fromkeys(adapter for arm in found.arms for adapter in arm.adapters)) or "none",
        "intervals": "95 % over prompts: Student's t for means, exact or Wilson's for rates; differences paired by "
        "prompt and seed",
        "machine": found.hardware,
        "versions": ", ".join(f"{name} {version}" for name, version in found.versions.items()),
    }
    table = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in rows.items())
    return f'<table class="plain">{table}</table>'
