"""summary.json: what a run was, what it cost and what it achieved. `Summary` is its schema."""

import json
import shlex
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from align.config import Recipe
from align.data.prompts import load_prompts, words
from align.errors import UserError
from align.figures.statistics import Comparison, better
from align.files.output import write as write_file
from align.hooks import metrics
from align.hooks._base import State
from align.policy import adapter_file, soft_prompt
from align.policy.roles import Calls
from align.registry import called
from align.reports import course
from align.training.evaluate import PICTURE
from align.versions import hardware, versions
from rewards._numerals import counted

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
    strength: float = 1.0
    """The adapter's, at which `scores` were measured: the one that a hook recommends, else 1."""
    report_seen: dict[str, int] = Field(default_factory=dict)
    """How many of the report prompts were not held out: {"trained on": n, "chosen on": m}; left out where none is."""
    scores: dict[str, Comparison] = Field(default_factory=dict)
    """For each reward and judge: before and after on the report prompts at the same seeds, means over prompts with
    95 % intervals, and the paired difference."""
    findings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """What the hooks concluded, by their labels: the guard's events, its sweep of strengths, the one it recommends."""
    fell: str = ""
    """Where the trained reward had fallen back at chosen_update, from where and what to do; else ""."""
    trained_on: list[str]
    """The labels among the scores that training has maximised."""
    adapters: dict[str, str] = Field(default_factory=dict)
    """What took part beside the trained adapter, by name: trained with an optimiser of its own, a snapshot, frozen."""
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
    """The main process's largest resident memory, MiB."""
    peak_gpu_mib: float | None
    """The main process's largest allocated GPU memory, MiB; null without a GPU."""
    hardware: str
    """Processor, cores and threads, and the GPU where there is one."""
    versions: dict[str, str]
    """Of Python and of the packages that the numbers depend on."""


class _Gain(BaseModel):
    better: bool
    mean: float
    low: float
    high: float


class _Event(BaseModel):
    update: float
    event: str


class _Tried(BaseModel):
    strength: float
    score: float


class _Finding(BaseModel):
    """What reports and cards read of a hook's conclusion; it may say more."""

    recommended_strength: float = 1.0
    gain: _Gain | None = None
    events: list[_Event] = []
    sweep: list[_Tried] = []
    seconds: float = 0.0

    @model_validator(mode="after")
    def _swept(self) -> "_Finding":
        if self.sweep and "recommended_strength" not in self.model_fields_set:
            raise ValueError("a sweep without recommended_strength")
        return self


class _Findings(BaseModel):
    findings: dict[str, _Finding] = {}


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
    adapters: dict[str, str] | None = None,
    report_seen: dict[str, int] | None = None,
) -> Summary:
    """Writes the summary of a run that ended in `state`, from the recipe, its metrics and its network calls."""
    records = metrics.read(output / metrics.FILE_NAME)
    seconds = [record["seconds"] for record in records if "seconds" in record]
    chosen = state.chosen.step if state.chosen else state.step
    aimed = getattr(recipe.objective, "target", None) is not None  # at a value: the reward may fall to it
    written = Summary(
        method=recipe.objective.name,  # type: ignore[attr-defined]  # every component has one
        model=called(recipe.model),
        seed=recipe.train.seed,
        num_processes=num_processes,
        num_updates=state.step,
        stopped=state.stop,
        chosen_update=chosen,
        report_prompts=_named(recipe.evaluate.prompts) if recipe.evaluate else None,
        report_seen=report_seen or {},
        strength=recommended_strength(findings),
        scores=scores,
        findings=findings,
        fell=str((not aimed and course.fall(records, chosen)) or ""),
        trained_on=list(recipe.rewards),
        adapters=adapters or {},
        seconds=sum(seconds),
        seconds_per_update=statistics.median(seconds) if seconds else 0.0,
        network_calls=calls.forward + calls.recompute,
        forward_equivalents=calls.forward_equivalents,
        peak_rss_mib=peak_rss(),
        peak_gpu_mib=torch.cuda.max_memory_allocated() / 1024**2 if torch.cuda.is_available() else None,
        hardware=hardware(),
        versions=versions(),
    )
    write_file(output / FILE_NAME, written.model_dump_json(indent=2) + "\n")
    return written


def recommended_strength(findings: Mapping[str, Mapping[str, Any]]) -> float:
    """What a hook recommends; 1 where none has tried."""
    said = [c["recommended_strength"] for c in findings.values() if "recommended_strength" in c]
    return float(said[0]) if said else 1.0


def seen(recipe: Recipe, trained: Sequence[str]) -> dict[str, int]:
    """How many distinct report prompts training (on the prompts `trained`) or a hook has seen, by their words."""
    if recipe.evaluate is None:
        return {}
    chosen: list[str] = []
    for hook in recipe.hooks.values():
        if getattr(hook, "chooses", False):
            source: Any = hook
            number = source.num_prompts + getattr(source, "num_sweep_prompts", 0)
            chosen += load_prompts(source.prompts, count=number, key="hooks")
    report = load_prompts(recipe.evaluate.prompts, count=recipe.evaluate.num_prompts, key="evaluate.prompts")
    told = set(map(words, report))
    counts = {
        how: len(told & set(map(words, known))) for how, known in (("trained on", trained), ("chosen on", chosen))
    }
    return {how: number for how, number in counts.items() if number}


def _named(prompts: str | Sequence[str]) -> str:
    """What report prompts are called: a set or a file by its name, those that stand in the recipe by their number."""
    return prompts if isinstance(prompts, str) else counted(len(prompts), "prompt of the recipe")


def unmoved(summary: Summary) -> str:
    """Why the adapter changes nothing, where a guard holds that no update was better than none; else ""."""
    if summary.chosen_update > 0 or summary.num_updates == 0:
        return ""
    return (
        f"the guard has found none of the {counted(summary.num_updates, 'update')} better than the base on what was "
        "not trained on: the adapter is that of update 0 and changes nothing. Train longer, lower the rate, add what "
        "the reward forgets, or take the last update with hooks.guard=false"
    )


def held_out(report_seen: Mapping[str, int]) -> str:
    """What the report prompts are, in words that are true."""
    if not report_seen:
        return "prompts that nothing was trained or chosen on"
    told = " and ".join(f"{number} {'was' if number == 1 else 'were'} {how}" for how, number in report_seen.items())
    return f"prompts of which {told}, so that these are no held-out scores"


def read(output: Path) -> Summary:
    """The summary in a run's folder."""
    path = output / FILE_NAME
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        found = Summary.model_validate_json(text)
        _Findings.model_validate_json(text)
        json.loads(text, parse_constant=_no_number)
        return found
    except ValidationError as error:
        said = f"{error.errors()[0]['msg']}, at {'.'.join(map(str, error.errors()[0]['loc'])) or 'its start'}"
    except ValueError as error:
        said = str(error)
    raise UserError(f"{path}: is no summary that a run has written ({said}). Train again to write it.")


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def lines(summary: Summary, output: Path) -> Iterator[str]:
    """What a user reads at the end of a run."""
    if summary.scores and summary.strength != 1:
        yield f"of the adapter at strength {summary.strength:g}:"
    for label, score in summary.scores.items():
        change = score.difference
        yield (
            f"{label:<16} {score.before.mean:.4f} -> {score.after.mean:.4f}  change {change.mean:+z.4f} "
            f"[{change.within('+z.4f')}]  {better(score)}"
        )
    if summary.report_seen:
        yield "give evaluate.prompts that are not trained on"
    if why := unmoved(summary):
        yield why
    if summary.fell:
        yield summary.fell
    if summary.stopped:
        yield f"ended early: {summary.stopped}"
    for label, found in summary.findings.items():
        if "recommended_strength" in found:
            word = "recommends" if (found.get("gain") or {}).get("better", True) else "leaves"
            yield f"{label} {word} the adapter at strength {found['recommended_strength']:g}{gain(found)}"
    if summary.scores:
        yield f"before and after  {output / PICTURE}"
    yield f"report  {output / 'report.html'}"
    updates = counted(summary.num_updates, "update")
    yield (
        f"{updates} in {summary.seconds:.0f} s ({summary.seconds_per_update:.2f} s each), adapter of update "
        f"{summary.chosen_update} in {output / 'adapter'}"
    )
    if then := next_command(output, summary.strength):
        yield f"next:  {then}"


def next_command(output: Path, strength: float = 1.0) -> str:
    """What to do with what a run has left, at this strength; "" where no command draws with it."""
    run, adapter = shlex.quote(str(output)), output / adapter_file.FOLDER
    if (adapter / soft_prompt.FILE_NAME).is_file():
        return f'align sample {run} "a prompt with its word"'
    if (adapter / adapter_file.FILE_NAME).is_file():
        more, at = (f" --strength {strength:g}", f"@{strength:g}") if strength != 1 else ("", "")
        return f'align sample {run} "a prompt"{more}   # or: align evaluate {run}{at} -n 32'
    return ""


def gain(found: Mapping[str, Any]) -> str:
    """How sure the gain on held-out rewards is."""
    if not (told := found.get("gain")):
        return ""
    word = "better than the base" if told["better"] else "not surely better than the base"
    return f": {word}, {told['mean']:+z.2f} [{told['low']:+z.2f}, {told['high']:+z.2f}] of its standard deviations"
