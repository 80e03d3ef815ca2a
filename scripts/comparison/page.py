"""docs/lab/results.md and its figures, from what has been measured; never edited by hand."""

import json
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from align.figures import charts
from align.figures.statistics import Interval, over_seeds
from scripts.comparison.figures import forest, lines, points
from scripts.comparison.measure import COLUMNS
from scripts.comparison.methods import FRONT

LABELS = ("gold", "judge", "judge_graded", "pick", "clip")


def write(output: Path, page: Path) -> Path | None:
    """Writes the page and docs/lab/img/results-*.svg; None if nothing has been measured."""
    found = {column: gains for column in COLUMNS if (gains := _gains(output, column))}
    images = page.parent / "img"
    images.mkdir(parents=True, exist_ok=True)
    parts = [HEAD] if found else []
    for column, gains in found.items():
        figure = f"results-{column}.svg"
        (images / figure).write_text(forest(gains, column), encoding="utf-8")
        parts += [
            f"## At equal {column}\n",
            _table(gains),
            f"![Gain in gold utility at equal {column}](img/{figure})\n",
        ]
    parts += [_proxy(found[COLUMNS[0]], images)] if COLUMNS[0] in found else []
    parts += [_against(output), _front(output, images), _speed(output, images), _variance(output)]
    if not any(parts):
        return None
    told = (TITLE, *([_verdict(found[COLUMNS[0]])] if COLUMNS[0] in found else []), WRITTEN, *parts)
    page.write_text("\n".join(part for part in told if part), encoding="utf-8")
    return page


TITLE = "# Results on the shapes world\n"
WRITTEN = "Written by `python scripts/compare.py write` from measured runs; not edited by hand.\n"

RIVALS = {
    "spo-tweedie": "SPO learns faster than DPO",
    "spo-spm": "SPO learns faster than DPO",
    "inversion-dpo-anchored": "Inversion-DPO learns faster than Diffusion-DPO",
    "inversion-dpo-residual": "Inversion-DPO learns faster than Diffusion-DPO",
}
"""What the papers say of them."""

HEAD = """## Methods

Every method trains the embedded model on the embedded preference reward (`pick`), or picks by it. The budget is what
DRaFT-1 spends in the updates of its row: in wall-clock seconds within updates, and in forward-equivalents of the
network (rows of network, decoder and reward, each 1 forward, 1 recomputed and 2 backward, decoder and reward at their
share of the network's floating-point operations). Scores are differences to the base on report prompts at the same
seeds, averaged over seeds, with 95 % intervals over seeds and prompts together; no guard, the last adapter.
`gold`, `judge` and `judge_graded` know the truth and no method sees them. Best-of-n pays its cost for every new image
again, the others once. DPO, Inversion-DPO and the step-aware judge of spo-spm learn from pairs of the base model's
own images that gold's noisy voters labelled; to make those pairs, to invert them and to train that judge is paid
beforehand and not in these columns. Those pairs ask for the six skills in equal shares, as the report does; DRaFT, the
other reward gradients and SPO take `shapes:train` as it is, 83 % of which asks for a position or an attribution.
"""


def _gains(output: Path, column: str) -> dict[str, dict[str, Any]]:
    """method -> {"updates", "seeds", label: Interval of the difference}."""
    found = {}
    for folder in sorted(path for path in output.glob("*") if path.is_dir()):
        runs = [json.loads(path.read_text()) for path in sorted(folder.glob(f"seed-*/{column}.json"))]
        if not runs:
            continue
        told: dict[str, Any] = {"updates": runs[0]["updates"], "seeds": len(runs)}
        for label in LABELS:
            scores = [run["scores"] for run in runs if label in run["scores"]["after"]]
            if scores:
                gains = [torch.tensor(s["after"][label]) - torch.tensor(s["before"][label]) for s in scores]
                told[label] = over_seeds(torch.stack(gains))
        found[folder.name] = told
    return dict(sorted(found.items(), key=lambda item: -item[1]["gold"].mean))


def _verdict(gains: Mapping[str, Mapping[str, Any]]) -> str:
    """The page in two lines: which method gains most gold, and what paying anew for each image gains."""
    trained, chosen = (
        [(n, t["gold"]) for n, t in gains.items() if (n == "best-of-n") is best] for best in (False, True)
    )
    first = [f"{name} gains most gold of what is trained, {_signed(value)};" for name, value in trained[:1]]
    second = [f"{name} gains {_signed(value)}, and pays it for every image anew." for name, value in chosen[:1]]
    return "\n".join([" ".join([f"**Verdict.** At equal {COLUMNS[0]}", *first]), *second]) + "\n"


def _table(gains: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [f"| method | updates or n | seeds | {' | '.join(LABELS)} |", "|---|---|---|" + "---|" * len(LABELS)]
    for name, told in gains.items():
        cells = [_signed(told[label]) if label in told else "" for label in LABELS]
        lines.append(f"| {name} | {told['updates']} | {told['seeds']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _signed(value: Interval) -> str:
    return f"{value.mean:+.3f} [{value.within('+.3f')}]"


def _speed(output: Path, images: Path) -> str:
    """The trained reward over the seconds, mean of the seeds, for the lengths of the gradient window. Seconds are
    updates times what one costs: those of the runs themselves also tell what else the machine did."""
    series = {}
    for name in ("draft-1", "draft-5", "draft-full", "draft-lv", "refl", "drtune"):
        curves = [json.loads(p.read_text())["curve"] for p in sorted(output.glob(f"{name}/seed-*/{COLUMNS[0]}.json"))]
        rows = [rows for rows in zip(*curves, strict=False) if all(row[2] is not None for row in rows)]
        if rows:
            each = json.loads((output / name / "cost.json").read_text())[COLUMNS[0]]
            series[name] = charts.running_mean([(row[0][0] * each, _mean(r[2] for r in row)) for row in rows])
    if not series:
        return ""
    (images / "results-speed.svg").write_text(lines(series, "seconds in updates", {}), encoding="utf-8")
    text = "## How fast the trained reward rises\n\n![Trained reward over seconds](img/results-speed.svg)\n"
    told = _difference(output, COLUMNS[0], "draft-1", "draft-full", "pick")
    if told is None:
        return text
    claim = _claim(
        "small K learns faster per second than all steps",
        True if told.edges[0] > 0 else None if told.edges[1] > 0 else False,
    )
    return (
        f"{text}\nAt equal {COLUMNS[0]}, on the report prompts, K = 1 gains {_signed(told)} more of the trained reward "
        f"than all steps. {claim}\n"
    )


def _against(output: Path) -> str:
    """Methods of preferences against Diffusion-DPO, at equal cost."""
    said = []
    for name, claim in RIVALS.items():
        for column in COLUMNS:
            told = _difference(output, column, name, "diffusion-dpo", "gold")
            if told is not None:
                holds = True if told.edges[0] > 0 else None if told.edges[1] > 0 else False
                said.append(f"- At equal {column}, {name} gains {_signed(told)} more gold. {_claim(claim, holds)}")
    head = "## Against Diffusion-DPO\n\nEach by its own recipe: rates, batches and betas differ.\n\n"
    return head + "\n".join(said) + "\n" if said else ""


def _difference(output: Path, column: str, first: str, second: str, label: str) -> Interval | None:
    """What the first method gains of `label` more than the second, paired by prompt, seeds averaged."""
    means = []
    for name in (first, second):
        runs = [json.loads(path.read_text()) for path in sorted(output.glob(f"{name}/seed-*/{column}.json"))]
        if not runs:
            return None
        means.append(torch.stack([torch.tensor(run["scores"]["after"][label]) for run in runs]).double())
    seeds = min(map(len, means))
    return over_seeds(means[0][:seeds] - means[1][:seeds])


def _claim(claim: str, holds: bool | None) -> str:
    said = "is not decided" if holds is None else "holds" if holds else "does NOT hold"
    return f"The papers' claim that {claim} {said} here."


def _proxy(gains: Mapping[str, Mapping[str, Any]], images: Path) -> str:
    """What is trained on, or picked by, against what is meant by it."""
    series = {name: [(told["pick"].mean, told["gold"].mean)] for name, told in gains.items() if "pick" in told}
    if not series:
        return ""
    drawn = points(series, "gain in the trained reward, pick", "gain in gold utility")
    (images / "results-proxy.svg").write_text(drawn, encoding="utf-8")
    return f"## Proxy against gold\n\nAt equal {COLUMNS[0]}.\n\n![Gain in pick and in gold](img/results-proxy.svg)\n"


def _front(output: Path, images: Path) -> str:
    """Each adapter turned up from the base to more than it was trained at."""
    series, said = {}, ""
    for folder in (output / name for name in FRONT):
        sweeps = [json.loads(path.read_text()) for path in sorted(folder.glob("seed-*/sweep.json"))]
        if sweeps:
            strengths = sorted(sweeps[0], key=float)
            gains = {
                label: [_mean(s[k][label] for s in sweeps) for k in strengths] for label in ("pick", "judge_graded")
            }
            series[folder.name] = [(0.0, 0.0), *zip(gains["pick"], gains["judge_graded"], strict=True)]
            said = f"at the strengths 0, {', '.join(strengths)}; they were trained at 1. "
            said += f"Means of {len(sweeps)} seeds, no intervals."
    if not series:
        return ""
    drawn = points(series, "gain in the trained reward, pick", "gain in the graded judge", joined=True)
    (images / "results-front.svg").write_text(drawn, encoding="utf-8")
    return (
        f"## The front of reward and fidelity\n\nThe last adapters {said}\n\n"
        "![Reward and judge at each strength](img/results-front.svg)\n"
    )


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


def _variance(output: Path) -> str:
    rows = {p.parent.name: json.loads(p.read_text()) for p in sorted(output.glob("*/variance.json"))}
    if not rows:
        return ""
    lines = [
        "## The gradient at the start\n",
        "A batch's gradient at the fresh adapter, over batches. The noise of it is",
    ]
    lines += ["its variance over the squared norm of its mean, with a 95 % jackknife interval.\n"]
    lines += ["| method | root of the mean squared norm | noise | batches x rows |", "|---|---|---|---|"]
    noise = {name: _noise(r) for name, r in rows.items()}
    for name, r in rows.items():
        middle, low, high = noise[name]
        lines.append(
            f"| {name} | {r['norm']:.3g} | {middle:.3g} [{low:.3g}, {high:.3g}] | {r['batches']} x {r['rows']} |"
        )
    for claim, less, more in (
        ("the further noises of LV lower the variance", "draft-lv", "draft-1"),
        ("inverted paths lower the variance of Diffusion-DPO", "inversion-dpo-anchored", "diffusion-dpo"),
    ):
        if {less, more} <= rows.keys():
            (_, low, high), (_, low_of_more, high_of_more) = noise[less], noise[more]
            lines.append("\n" + _claim(claim, True if high < low_of_more else False if low > high_of_more else None))
    for claim, less, more in (
        ("the gradient grows with K", "draft-1", "draft-5"),
        ("the gradient grows with K, to all steps", "draft-5", "draft-full"),
    ):
        if {less, more} <= rows.keys():
            lines.append("\n" + _claim(claim, rows[less]["norm"] < rows[more]["norm"]))
    return "\n".join(lines) + "\n"


def _noise(row: Mapping[str, float]) -> tuple[float, float, float]:
    """Variance over squared mean, and its interval; infinite where the mean is not told from none."""
    half = 1.96 * row["signal_error"]
    return tuple(  # type: ignore[return-value]
        row["variance"] / signal if signal > 0 else float("inf")
        for signal in (row["signal"], row["signal"] + half, row["signal"] - half)
    )
