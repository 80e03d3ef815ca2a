"""What levers are worth: DRaFT-1 of twenty guided steps for as many seconds with each, and what each does to the
gradient."""

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import align
from align.run import Run
from scripts.comparison.curves import over_seeds

FOLDER, PILOT, COSINES = "levers", 8, "cosines.json"
IMAGES = ("--images", "48")  # a few images' gradients, some large, are no measure of a mean
RECIPE = "draft/shapes"
BASE = (
    "sampling.num_steps=20",
    "sampling.guidance_scale=2",
    "sampling.last_k=1",
    "train.batch_size=16",
    "optim.lr=1.5e-3",
    "optim.schedule=constant",
    "evaluate=null",
)
ARMS: Mapping[str, tuple[str, ...]] = {
    "plain": (),
    "reuse 4": ("sampling.levers.reuse=4",),
    "guidance refresh": ("sampling.levers.guidance=refresh",),
    "guidance none": ("sampling.levers.guidance=none",),
    "bf16": ("sampling.levers.precision=bf16",),
    "fast": ("sampling.levers.fast=true",),
}

HEAD = """# What levers cost and give

{verdict}

Written by `python scripts/compare.py write` from measured runs; not edited by hand.

`{recipe}` at 20 steps under guidance 2, K = 1, batch 16, one constant rate, for {seconds:.0f} seconds of updates with
each of `sampling.levers`; how many updates that is says a pilot of {pilot} of each, in turns. {prompts} select prompts,
drawn in full: the change since before training, the mean of the seeds with its 95 % t-interval over seeds, in brackets
the seeds. *Took*: seconds that the updates took in the end, on a machine that did other work beside, so that arms had
unequal shares of it; *a minute*: gold over that time.{fast}

| lever | seconds an update | updates | took | gold | gold a minute | judge |
|---|---|---|---|---|---|---|
"""
FASTER = """
*fast* is guidance refresh, and on a GPU bf16 with it."""
PRICES = """
## The gradient

`scripts/bench/levers.py {images}` at the adapter of the first plain run: the cosine of the gradient to the plain
one's on the same prompts and noises, the rows of the network and the CPU seconds of it. For reuse, of each further
update.

| lever | cosine | rows | seconds |
|---|---|---|---|
"""


def measure(output: Path, root: Path, seeds: Sequence[int], *, seconds: float, prompts: int) -> None:
    """Pilots, then every arm on every seed for as many updates as `seconds` hold, then the gradients."""
    each = {name: cost(output, name) for name in ARMS}
    for seed in seeds:
        for name in ARMS:
            updates = max(2, round(seconds / each[name]))
            watched = {"prompts": "shapes:select", "num_prompts": prompts, "rewards": {"gold": {}, "judge": {}}}
            told = {"panel": watched | {"every": -(-updates // 2)}}
            _train(place(output, name) / f"seed-{seed}", name, seed, updates, told)
    path = output / FOLDER / COSINES
    if not path.is_file():
        adapter = place(output, "plain") / f"seed-{seeds[0]}" / "adapter"
        command = [sys.executable, "-P", str(root / "scripts" / "bench" / "levers.py"), "--steps", "20", *IMAGES]
        subprocess.run([*command, "--adapter", str(adapter), "--json", str(path)], cwd=root, check=True)


def cost(output: Path, name: str) -> float:
    """Seconds an update in a pilot, its first four (which warm up, and are a whole batch of reuse) left out."""
    run = _train(place(output, name) / "pilot", name, 0, PILOT, {})
    return statistics.fmean(record["seconds"] for record in run.metrics[4:] if "seconds" in record)


def _train(folder: Path, name: str, seed: int, updates: int, hooks: Mapping[str, Any]) -> Run:
    if (folder / "summary.json").is_file():
        return Run(folder)
    changes = (f"train.seed={seed}", f"train.num_updates={updates}", f"hooks={json.dumps(hooks)}", f"output={folder}")
    run = align.train(RECIPE, (*BASE, *ARMS[name], *changes))
    if run.interrupted:
        raise SystemExit(130)
    return run


def place(output: Path, name: str) -> Path:
    return output / FOLDER / name.replace(" ", "-")


def gain(metrics: Sequence[Mapping[str, Any]], label: str) -> float:
    """The last of a label's measurements less the first."""
    seen = [record[f"panel/{label}"] for record in metrics if f"panel/{label}" in record]
    return float(seen[-1] - seen[0])


def write(output: Path, page: Path) -> Path | None:
    """The page; None where nothing has been measured."""
    lines, rates, seconds, prompts = [], {}, 0.0, 0
    for name in ARMS:
        runs = [Run(path) for path in sorted(place(output, name).glob("seed-*")) if (path / "summary.json").is_file()]
        if not runs:
            continue
        panel: Any = runs[0].recipe.hooks["panel"]
        prompts, updates = panel.num_prompts, runs[0].recipe.train.num_updates
        took = [sum(r.get("seconds", 0.0) for r in run.metrics) for run in runs]
        each, golds = cost(output, name), [gain(run.metrics, "gold") for run in runs]
        rates[name] = [60 * gold / time for gold, time in zip(golds, took, strict=True)]
        seconds = max(seconds, each * updates)
        judged = over_seeds([gain(run.metrics, "judge") for run in runs])
        lines.append(
            f"| {name} | {each:.2f} | {updates} | {statistics.fmean(took):.0f} | {over_seeds(golds)} "
            f"| {over_seeds(rates[name])} | {judged} |"
        )
    if not lines:
        return None
    told = {"recipe": RECIPE, "seconds": seconds, "pilot": PILOT, "prompts": prompts, "verdict": _verdict(rates)}
    told["fast"] = FASTER if "fast" in rates else ""
    text = HEAD.format(**told) + "\n".join(lines) + "\n"
    if (path := output / FOLDER / COSINES).is_file():
        rows = json.loads(path.read_text(encoding="utf-8"))
        text += PRICES.format(images=" ".join(IMAGES)) + "".join(
            f"| {row['lever']} | {row['cosine']:.4f} | {row.get('rows', '')} | {row.get('seconds', '')} |\n"
            for row in rows
        )
    page.write_text(text, encoding="utf-8")
    return page


def _verdict(rates: Mapping[str, Sequence[float]]) -> str:
    means = {name: statistics.fmean(each) for name, each in rates.items()}
    best = max(means, key=means.__getitem__)
    said = ", ".join(f"{name} {mean:+.3f}" for name, mean in means.items())
    most = f"{means[best] / means['plain']:.2f} times that of plain." if means.get("plain", 0) > 0 else "most."
    return f"**Verdict.** Gold gained in a minute of updates: {said};\n{best} is best, {most}"
