"""A negative against plain guidance: base, Diffusion-DPO, NPO's negative and both, each at its best guidance scale.

The scale is chosen by the judge on select prompts, and what it gives is read on report prompts at other seeds' noise.
"""

import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from align.evaluation.results import EVALUATION, Evaluation
from scripts.comparison.curves import over_seeds

FOLDER = "guided"
SCALES = (1.5, 2.0, 3.0, 4.5)
ARMS = ("base", "dpo", "npo", "dpo + npo")
LABELS = ("judge", "gold")

HEAD = """
## Against guidance at its best scale

*Scale*: of {scales}, the one where the judge passes most of {select} select prompts, for each
seed. Then {report} report prompts a seed at that scale, against the base at its own, the mean of the seeds with its
95 % t-interval over seeds, in brackets the seeds. dpo is diffusion-dpo's adapter, npo the base with the negative on the
unprompted branch, and both together.

"""


def measure(output: Path, seed: int, root: Path, *, select: int = 128, report: int = 256) -> None:
    """All scales on select prompts, then each arm at its best on report prompts, for one seed's two adapters."""
    dpo, npo = (output / "preferences" / name / f"seed-{seed}" for name in ("diffusion-dpo", "npo"))
    systems = {"dpo": str(dpo), "npo": str(npo), "dpo + npo": f"{dpo}~{npo}"}
    folder = output / FOLDER / f"seed-{seed}"
    for scale in SCALES:
        _evaluate(folder / f"select-{scale:g}", root, seed, scale, "select", select, list(systems.values()))
    for arm, scale in best(folder).items():
        wanted = [systems.get(arm, systems["dpo"])]  # the base is drawn beside any
        _evaluate(folder / f"report-{arm.replace(' ', '')}", root, seed, scale, "report", report, wanted)


def best(folder: Path) -> dict[str, float]:
    """{arm: the scale at which the judge passes most select prompts; of equals the smallest}."""
    passed = {scale: means(_read(folder / f"select-{scale:g}"), "judge") for scale in SCALES}
    return {arm: max(SCALES, key=lambda scale: (passed[scale][i], -scale)) for i, arm in enumerate(ARMS)}


def means(found: Evaluation, label: str) -> list[float]:
    """Mean scores of the base and of the arms, in the order they were asked for."""
    return [found.baseline.scores[label].mean, *(arm.scores[label].after.mean for arm in found.arms)]


def _read(folder: Path) -> Evaluation:
    return Evaluation.model_validate_json((folder / EVALUATION).read_text(encoding="utf-8"))


def _evaluate(
    folder: Path, root: Path, seed: int, scale: float, split: str, count: int, systems: Sequence[str]
) -> None:
    if (folder / EVALUATION).is_file():
        return
    command = [sys.executable, "-m", "align", "evaluate", *systems, "--prompts", f"shapes:{split}", "-n", str(count)]
    command += ["--recipe", "diffusion_dpo/shapes", "--set", f"sampling.guidance_scale={scale}", "--images", "1"]
    command += ["--seed", str(seed), "--batch-size", "64", "-o", str(folder), "--quiet"]
    for label in LABELS:
        command += ["--reward", label]
    subprocess.run(command, cwd=root, check=True)


def table(output: Path) -> str:
    """The section of the page; empty where nothing has been measured."""
    seeds = sorted((output / FOLDER).glob("seed-*"))
    rows: dict[str, list[tuple[float, dict[str, float]]]] = {arm: [] for arm in ARMS}
    counts: list[int] = []
    for folder in seeds:
        if not all((folder / f"report-{arm.replace(' ', '')}" / EVALUATION).is_file() for arm in ARMS):
            continue
        for arm, scale in best(folder).items():
            found = _read(folder / f"report-{arm.replace(' ', '')}")
            rows[arm].append((scale, {label: means(found, label)[arm != "base"] for label in LABELS}))
            counts = [_read(folder / f"select-{SCALES[0]:g}").num_prompts, found.num_prompts]
    if not counts:
        return ""
    lines = ["| drawn by | scale | judge | judge above the base | gold above the base |", "|---|---|---|---|---|"]
    base = [scores for _, scores in rows["base"]]
    for arm, found_rows in rows.items():
        scales = " ".join(f"{scale:g}" for scale, _ in found_rows)
        passed = statistics.fmean(scores["judge"] for _, scores in found_rows)
        gains = {
            label: over_seeds([s[label] - b[label] for (_, s), b in zip(found_rows, base, strict=True)])
            for label in LABELS
        }
        told = ("", "") if arm == "base" else (gains["judge"], gains["gold"])
        lines.append(f"| {arm} | {scales} | {passed:.1%} | {told[0]} | {told[1]} |")
    head = HEAD.format(scales=", ".join(f"{s:g}" for s in SCALES), select=counts[0], report=counts[1])
    return head + "\n".join(lines) + "\n"
