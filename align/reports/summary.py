"""summary.json: what a run was, what it cost and what it achieved. `Summary` is its schema."""

import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from align.config import Recipe
from align.figures.statistics import Comparison
from align.hooks import metrics
from align.hooks._base import State
from align.policy.roles import Calls
from align.training.evaluate import PICTURE
from align.versions import hardware, versions

FILE_NAME = "summary.json"
RSS_UNITS_PER_MIB = 1024**2 if sys.platform == "darwin" else 1024


class Summary(BaseModel):
    """One finished run."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    method: str
    """The objective's name."""
    model: str
    """The family's name and the checkpoint."""
    seed: int
    """The run's: of its noise, its prompts' order and its adapter's first values."""
    num_processes: int
    """It changes no number above rounding, but the cost."""
    num_updates: int
    """Updates done; fewer than the recipe's where a hook ended the run."""
    stopped: str | None
    """Why it ended before the recipe's num_updates, or null."""
    chosen_update: int
    """The update whose parameters are the run's result: the last, or the best by a held-out panel."""
    report_prompts: str | None
    """Where the prompts of `scores` come from; null where the recipe has no `evaluate` block."""
    scores: dict[str, Comparison] = Field(default_factory=dict)
    """For each reward and judge: before and after on the report prompts at the same seeds, means over prompts with
    95 % intervals, and the paired difference."""
    findings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """What the hooks concluded, by their labels: the guard's events, its sweep of strengths, the one it recommends."""
    trained_on: list[str]
    """The labels among the scores that training has maximised."""
    seconds: float
    """Spent in updates, earlier parts of a resumed run included; without loading, hooks and the report."""
    seconds_per_update: float
    """The median."""
    network_calls: int
    """Rows that went through the network in training, over all processes: a guided step counts two a sample; what
    was recomputed for a backward pass counts again."""
    forward_equivalents: int
    """The same with 2 more for each row of a backward pass."""
    peak_rss_mib: float
    """The main process's largest resident memory, MiB; what it holds at the end where none is kept."""
    peak_gpu_mib: float | None
    """The main process's largest allocated GPU memory, MiB; null without a GPU."""
    hardware: str
    """Processor, cores and threads, and the GPU where there is one."""
    versions: dict[str, str]
    """Of Python and of the packages that the numbers depend on."""


def peak_rss() -> float:
    """MiB; where there is no `resource` (Windows), by psutil, which comes with accelerate."""
    try:
        import resource
    except ImportError:
        import psutil

        found = psutil.Process().memory_info()
        return getattr(found, "peak_wset", found.rss) / 1024**2
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / RSS_UNITS_PER_MIB


def write(
    output: Path,
    recipe: Recipe,
    state: State,
    scores: dict[str, Comparison],
    findings: dict[str, dict[str, Any]],
    calls: Calls,
    num_processes: int,
) -> Summary:
    """Writes the summary of a run that ended in `state`, from the recipe, its metrics and its network calls."""
    seconds = [record["seconds"] for record in metrics.read(output / metrics.FILE_NAME) if "seconds" in record]
    written = Summary(
        method=recipe.objective.name,  # type: ignore[attr-defined]  # every component has one
        model=f"{recipe.model.name} {getattr(recipe.model, 'checkpoint', '')}".strip(),  # type: ignore[attr-defined]
        seed=recipe.train.seed,
        num_processes=num_processes,
        num_updates=state.step,
        stopped=state.stop,
        chosen_update=state.chosen.step if state.chosen else state.step,
        report_prompts=str(recipe.evaluate.prompts) if recipe.evaluate else None,
        scores=scores,
        findings=findings,
        trained_on=list(recipe.rewards),
        seconds=sum(seconds),
        seconds_per_update=statistics.median(seconds) if seconds else 0.0,
        network_calls=calls.forward + calls.recompute,
        forward_equivalents=calls.forward_equivalents,
        peak_rss_mib=peak_rss(),
        peak_gpu_mib=torch.cuda.max_memory_allocated() / 1024**2 if torch.cuda.is_available() else None,
        hardware=hardware(),
        versions=versions(),
    )
    (output / FILE_NAME).write_text(written.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return written


def read(output: Path) -> Summary:
    """The summary in a run's folder."""
    return Summary.model_validate_json((output / FILE_NAME).read_text(encoding="utf-8"))


def lines(summary: Summary, output: Path) -> Iterator[str]:
    """What a user reads at the end of a run."""
    for label, score in summary.scores.items():
        change = score.difference
        yield (
            f"{label:<16} {score.before.mean:.4f} -> {score.after.mean:.4f}  change {change.mean:+.4f} "
            f"[{change.within('+.4f')}]  better on {100 * score.win_rate:.0f} %"
        )
    if summary.stopped:
        yield f"ended early: {summary.stopped}"
    for label, found in summary.findings.items():
        if "recommended_strength" in found:
            yield f"{label} recommends the adapter at strength {found['recommended_strength']:g}"
    if summary.scores:
        yield f"before and after  {output / PICTURE}"
    yield f"report  {output / 'report.html'}"
    yield (
        f"{summary.num_updates} updates in {summary.seconds:.0f} s ({summary.seconds_per_update:.2f} s each), adapter "
        f"of update {summary.chosen_update} in {output / 'adapter'}"
    )
