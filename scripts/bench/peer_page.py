"""What peers.py measured, as tables and curves in docs/lab/performance.md."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from comparison.figures import lines  # type: ignore[import-not-found]  # found by the line above

from align.data.prompts import load_prompts, words
from align.figures.statistics import compare

PAGE = Path(__file__).resolve().parents[2] / "docs" / "lab" / "performance.md"
BEGIN, END = "<!-- written by scripts/bench/peers.py -->", "<!-- end peers -->"
TITLES = {
    "alignprop": "AlignProp by the reward pick: TRL 0.11.4's trainer. Levers: ours, the steps "
    "without gradient run once for four updates (`sampling.levers.reuse`)",
    "dpo": "Diffusion-DPO on pairs by gold: the example script's structure",
    "reno": "ReNO on the two-step model: the published structure, one image at a time; ours four at a time",
}
Rows = Sequence[dict[str, Any]]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def curves(rows: Rows) -> dict[str, list[tuple[float, float]]]:
    """{side: [(seconds of CPU, gold's change)]}, the mean over seeds turn by turn, from (0, 0) on."""
    found: dict[str, list[tuple[float, float]]] = {}
    for side in dict.fromkeys(row["side"] for row in rows):
        own = [row for row in rows if row["side"] == side]
        turns = sorted({row["turn"] for row in own})
        whole = [t for t in turns if {r["seed"] for r in own if r["turn"] == t} == {r["seed"] for r in own}]
        at = [[row for row in own if row["turn"] == turn] for turn in whole]
        found[side] = [(0.0, 0.0), *((mean([r["seconds"] for r in t]), mean([r["change"][0] for r in t])) for t in at)]
    return found


def trained(rows: Rows) -> Iterator[str]:
    """A line a side: where it stood after its last turn."""
    yield "| | s of CPU | updates | s an update | gold's change, a seed each | a 100 s of CPU |"
    yield "|---|---|---|---|---|---|"
    for side in dict.fromkeys(row["side"] for row in rows):
        own = [row for row in rows if row["side"] == side]
        last = [max((r for r in own if r["seed"] == s), key=lambda r: r["turn"]) for s in {r["seed"]: 0 for r in own}]
        seconds, updates = sum(r["seconds"] for r in last), sum(r["updates"] for r in last)
        changes = "; ".join("{:+.3f} [{:+.3f}, {:+.3f}]".format(*r["change"]) for r in last)
        rate = 100 * mean([r["change"][0] for r in last]) * len(last) / seconds
        cells = [side, f"{seconds / len(last):.0f}", f"{updates / len(last):.0f}", f"{seconds / updates:.2f}", changes]
        yield f"| {' | '.join(cells)} | {rate:+.3f} |"


def by_images(rows: Rows) -> list[dict[str, Any]]:
    """ReNO's rows as those of training: seconds an image, and gold's change over images, a row a side and length."""
    found = []
    for count in sorted({row["iterations"] for row in rows}):
        own = [row for row in rows if row["iterations"] == count]
        scores = {side: torch.tensor([x for row in own for x in row[side]]) for side in ("base", "ours", "theirs")}
        asked = [words(p) for p in load_prompts("shapes:report", count=len(scores["base"]), key="prompts")]
        seconds = torch.tensor([row["seconds"] for row in own]).sum(0) / len(scores["base"])
        for side, spent in zip(("ours", "theirs"), seconds.tolist(), strict=True):
            change = compare(scores["base"], scores[side], asked).difference
            told = {"change": [change.mean, *change.edges], "turn": count, "seed": 0}
            found.append({"side": side, "seconds": spent, "iterations": count, **told})
    return found


def optimised(rows: Rows) -> Iterator[str]:
    """A line a side and number of iterations."""
    yield "| | iterations | s of CPU an image | gold's change |"
    yield "|---|---|---|---|"
    for row in rows:
        change = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*row["change"])
        yield f"| {row['side']} | {row['iterations']} | {row['seconds']:.2f} | {change} |"


def write(rows: Rows, page: Path) -> None:
    """The tables between their marks in the page, the curves beside it."""
    parts = []
    for name, title in TITLES.items():
        if not (own := [row for row in rows if row["method"] == name]):
            continue
        seen = by_images(own) if name == "reno" else own
        table = "\n".join(optimised(seen) if name == "reno" else trained(seen))
        label = "seconds of CPU, an image" if name == "reno" else "seconds of CPU"
        figure = page.parent / "img" / f"peers-{name}.svg"
        figure.parent.mkdir(exist_ok=True)
        figure.write_text(lines(curves(seen), label, {}), encoding="utf-8")
        picture = f"![Gold's change over {label}]({figure.relative_to(page.parent)})"
        parts.append(f"{title}. {own[0]['machine']}\n\n{table}\n\n{picture}")
    old, text = page.read_text(encoding="utf-8"), "\n\n".join(parts)
    page.write_text(f"{old[: old.index(BEGIN)]}{BEGIN}\n{text}\n{old[old.index(END) :]}", encoding="utf-8")
