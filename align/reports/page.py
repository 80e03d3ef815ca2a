"""report.html: a run in one file that needs nothing else; pictures, curves, what the guard saw, and how it was made."""

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from align.errors import UserError
from align.figures import charts
from align.figures.statistics import survivors
from align.files.output import write as write_file
from align.hooks import metrics
from align.reports import summary
from align.reports.summary import Summary
from align.training import evaluate

FILE_NAME = "report.html"
STYLE = Path(__file__).with_name("report.css")
GOLD = "gold"  # the reward that knows the truth, where there is one
SMALL = 128  # images below this side are drawn enlarged, pixel by pixel, and stored without loss
SHEETS = 8  # of samples, in a row
PROBES = ("drift", "guard/diversity", "guard/chroma", "guard/detail")


def write(output: Path) -> Path:
    """Writes OUTPUT/report.html from the files of a finished run, and returns its path."""
    if not (output / summary.FILE_NAME).is_file():
        raise UserError(f"{output} holds no {summary.FILE_NAME}: the run is not finished. Go on with align train.")
    found, records = summary.read(output), metrics.read(output / metrics.FILE_NAME)
    told = _told(output)
    sections = [
        _head(found, output),
        _section("Before and after", _scores(found), _pictures(output, told)),
        _section("Training", *_training(found, records), _strip(found, output)),
        _section("Proxy and gold", *_gold(found, records, told)),
        _section("The guard", *_guard(found, records)),
        _section("Gradients", *_gradients(records)),
        _section("How it was made", *_facts(found, output)),
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(_title(found))}</title><style>{STYLE.read_text(encoding='utf-8')}</style></head>"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )
    return write_file(output / FILE_NAME, page)


def _title(found: Summary) -> str:
    return f"{found.method} on {found.model}"


def _section(title: str, *parts: str) -> str:
    """Nothing where there is nothing to show."""
    body = "".join(parts)
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def _card(title: str, body: str) -> str:
    return f'<figure class="card"><figcaption>{escape(title)}</figcaption>{body}</figure>' if body else ""


def _grid(cards: Iterable[str]) -> str:
    body = "".join(cards)
    return f'<div class="cards">{body}</div>' if body else ""


def _head(found: Summary, output: Path) -> str:
    facts = {
        "updates": str(found.num_updates),
        "adapter of update": str(found.chosen_update),
        "seed": str(found.seed),
        "training": f"{found.seconds:.0f} s",
        "network rows": f"{found.network_calls:,}",
    }
    for conclusion in found.findings.values():
        if "recommended_strength" in conclusion:
            facts["recommended strength"] = f"{conclusion['recommended_strength']:g}"
    chips = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in facts.items())
    stopped = f'<p class="note">Ended early: {escape(found.stopped)}.</p>' if found.stopped else ""
    return f'<header><p class="kicker">{escape(output.name)}</p><h1>{escape(_title(found))}</h1>{stopped}' + (
        f'<div class="facts">{chips}</div></header>'
    )


def _scores(found: Summary) -> str:
    if not found.scores:
        return ""
    rows = []
    limit = survivors([score.p for score in found.scores.values()])
    for label, score in found.scores.items():
        change, unit = score.difference, score.std_before or 1.0
        role = "trained on" if label in found.trained_on else "held out"
        low, high = change.edges
        sure = change.low is not None and (score.p is None or score.p <= limit)
        bar = charts.interval(change.mean / unit, low / unit, high / unit, 1.0, sure=sure)
        rows.append(
            f'<tr><th>{escape(label)}<small>{role}</small></th><td class="n">{score.before.mean:.4f}</td>'
            f'<td class="n">{score.after.mean:.4f}</td><td class="n">{change.mean:+.4f}'
            f'<small>{change.within("+.4f", " to ")}</small></td><td>{bar}</td><td class="n">'
            f"{100 * score.win_rate:.0f} %</td></tr>"
        )
    number = next(iter(found.scores.values())).num_prompts
    return (
        "<table><thead><tr><th></th><th>before</th><th>after</th><th>change, 95 %</th><th>in standard deviations, "
        f"-1 to 1</th><th>better on</th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
        f'<p class="small">{number} {escape(summary.held_out(found.report_seen))} '
        f"({escape(str(found.report_prompts))}); the same seeds before and after, the adapter at strength "
        f"{found.strength:g}.</p>"
    )


def _told(output: Path) -> dict[str, Any]:
    path = output / evaluate.FOLDER / evaluate.SCORES
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _pictures(output: Path, told: Mapping[str, Any]) -> str:
    if not told:
        return ""
    label = told["verdict"]
    before, after = (told["scores"][name][label] for name in ("before", "after"))
    yes_or_no = set(before) | set(after) <= {0.0, 1.0}
    groups = []
    for number, prompt in enumerate(told["prompts"]):
        files = [output / evaluate.FOLDER / f"{number:04d}-{name}.png" for name in ("before", "after")]
        if not all(file.is_file() for file in files):
            break
        values = before[number], after[number]
        shown = []
        for name, file, value in zip(("before", "after"), files, values, strict=True):
            rose = (
                (value == 1) if yes_or_no else None if name == "before" or values[0] == values[1] else value > values[0]
            )
            kind = "plain" if rose is None else "good" if rose else "bad"
            said = ("yes" if value else "no") if yes_or_no else f"{value:.3f}"
            shown.append(f'<div class="{kind}">{_image(file)}<span>{name} <b>{escape(label)} {said}</b></span></div>')
        groups.append(
            f'<figure class="pair"><div>{"".join(shown)}</div><figcaption>{escape(prompt)}</figcaption></figure>'
        )
    return f'<div class="pairs">{"".join(groups)}</div>'


def _strip(found: Summary, output: Path) -> str:
    """The sheets of the samples hook over the updates, in a row; of many, so many evenly spaced ones."""
    found_there = sorted((output / "samples").glob("step-*.png"))
    sheets = {int(path.stem[5:]): path for path in found_there if path.stem[5:].isdigit()}
    steps = [step for step in sheets if step <= found.num_updates]
    if not steps:
        return ""
    shown = sorted({steps[round(i * (len(steps) - 1) / (SHEETS - 1))] for i in range(SHEETS)})
    figures = "".join(
        f"<figure>{_image(sheets[step])}<figcaption>{f'update {step}' if step else 'before'}</figcaption></figure>"
        for step in shown
    )
    return (
        f'<p class="small">The same prompts at the same seeds, over the updates.</p><div class="strip">{figures}</div>'
    )


def _image(file: Path) -> str:
    with Image.open(file) as opened:
        picture = opened.convert("RGB")
    data, small = io.BytesIO(), min(picture.size) < SMALL
    picture.save(data, **({"format": "PNG"} if small else {"format": "WEBP", "quality": 88}))
    kind, style = ("png", ' class="pixels"') if small else ("webp", "")
    return f'<img{style} alt="" src="data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}">'


def _series(records: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(r["step"], float(r[key])) for r in records if isinstance(r.get(key), int | float)]


def _with(records: Sequence[Mapping[str, Any]], prefix: str) -> dict[str, list[tuple[float, float]]]:
    """{what follows the prefix: its curve}."""
    keys = dict.fromkeys(key for record in records for key in record if key.startswith(prefix))
    return {key.removeprefix(prefix): points for key in keys if (points := _series(records, key))}


def _of(records: Sequence[Mapping[str, Any]], ending: str) -> dict[str, list[tuple[float, float]]]:
    """{name of a trainable beside the run's own: its curve}."""
    keys = dict.fromkeys(key for record in records for key in record if key.endswith(ending))
    return {key.removesuffix(ending): points for key in keys if (points := _series(records, key))}


def _marks(found: Summary) -> dict[float, str]:
    marks = {float(found.chosen_update): f"update {found.chosen_update}: the adapter that was kept"}
    for conclusion in found.findings.values():
        marks |= {float(event["update"]): str(event["event"]) for event in conclusion.get("events", ())}
    return marks


def _training(found: Summary, records: Sequence[Mapping[str, Any]]) -> list[str]:
    trained, marks = _with(records, "reward/"), _marks(found)
    if len(found.trained_on) == 1:
        trained.pop("total", None)
    held_out = _with(records, "panel/") | {
        label: points for label, points in _with(records, "guard/").items() if label not in (*_inner(), "score")
    }
    cards = [
        _card(f"reward, trained on: {label}", charts.lines({label: p}, marks=marks)) for label, p in trained.items()
    ]
    cards += [_card(f"held out: {label}", charts.lines({label: p}, marks=marks)) for label, p in held_out.items()]
    return [_grid(cards)]


def _inner() -> tuple[str, ...]:
    return tuple(probe.removeprefix("guard/") for probe in PROBES)


def _gold(found: Summary, records: Sequence[Mapping[str, Any]], told: Mapping[str, Any]) -> list[str]:
    cards, proxy = [], found.trained_on[0] if found.trained_on else ""
    truth, trained = _with(records, "panel/").get(GOLD, []), _series(records, "reward/total")
    if truth and trained:
        both = {"trained reward": _relative(charts.running_mean(trained)), GOLD: _relative(truth)}
        cards.append(_card("each as a share of its own range, over the run", charts.lines(both, marks=_marks(found))))
    scores = told.get("scores", {})
    if scores and GOLD in scores["before"] and proxy in scores["before"] and proxy != GOLD:
        gains = {
            label: [b - a for a, b in zip(scores["before"][label], scores["after"][label], strict=True)]
            for label in (proxy, GOLD)
        }
        points = list(zip(gains[proxy], gains[GOLD], strict=True))
        title = f"change of each report prompt: {proxy} (trained on) and {GOLD}"
        cards.append(_card(title, charts.scatter(points, x_label=f"change in {proxy}", y_label=f"change in {GOLD}")))
    return [_grid(cards)]


def _relative(points: charts.Points) -> list[tuple[float, float]]:
    low, high = min(y for _, y in points), max(y for _, y in points)
    return [(x, (y - low) / (high - low or 1.0)) for x, y in points]


def _guard(found: Summary, records: Sequence[Mapping[str, Any]]) -> list[str]:
    parts, marks = [], _marks(found)
    curves = {"score on held-out rewards, in the base's standard deviations": _series(records, "guard/score")}
    curves |= {probe.removeprefix("guard/"): _series(records, probe) for probe in PROBES}
    cards = [_card(name, charts.lines({name: points}, marks=marks)) for name, points in curves.items() if points]
    for conclusion in found.findings.values():
        if sweep := conclusion.get("sweep"):
            drawn = charts.lines(
                {"score": [(entry["strength"], entry["score"]) for entry in sweep]}, x_label="strength"
            )
            best = conclusion["recommended_strength"]
            cards.append(_card(f"score by the adapter's strength; recommended: {best:g}", drawn))
        if events := conclusion.get("events"):
            items = "".join(f"<li><b>{event['update']}</b> {escape(str(event['event']))}</li>" for event in events)
            parts.append(f'<ol class="events">{items}</ol>')
        if seconds := conclusion.get("seconds"):
            share = 100 * seconds / (seconds + found.seconds)
            parts.append(f'<p class="small">Watching took {seconds:.1f} s, {share:.0f} % of the training time.</p>')
    return [_grid(cards), *parts]


def _gradients(records: Sequence[Mapping[str, Any]]) -> list[str]:
    curves = {
        "norm of each reward's gradient at the pixels": _with(records, "pixel_grad/"),
        "cosine between the rewards' gradients": _with(records, "cosine/"),
        "norm of the adapter's gradient": {"gradient": _series(records, "grad_norm"), **_of(records, "/grad_norm")},
        "norm of the adapter": {"adapter": _series(records, "adapter_norm"), **_of(records, "/adapter_norm")},
        "loss of what is trained beside the adapter": _of(records, "/loss"),
        "steps with gradient": {"steps": _series(records, "kept_steps")},
    }
    return [_grid(_card(title, charts.lines(series)) for title, series in curves.items())]


def _facts(found: Summary, output: Path) -> list[str]:
    gpu = "" if found.peak_gpu_mib is None else f", GPU {found.peak_gpu_mib:.0f} MiB"
    rows = {
        "machine": found.hardware,
        "time": f"{found.seconds:.1f} s in updates, {found.seconds_per_update:.2f} s each",
        "processes": str(found.num_processes),
        "cost": f"{found.forward_equivalents:,} forward-equivalents of the network",
        "memory": f"{found.peak_rss_mib:.0f} MiB{gpu}",
        "versions": ", ".join(f"{name} {version}" for name, version in found.versions.items()),
    }
    rows |= {f"adapter {name}": text for name, text in found.adapters.items()}
    table = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in rows.items())
    recipe = (output / "recipe.yaml").read_text(encoding="utf-8")
    return [
        f'<table class="plain">{table}</table>',
        f"<details open><summary>recipe, resolved</summary><pre>{escape(recipe)}</pre></details>",
    ]
