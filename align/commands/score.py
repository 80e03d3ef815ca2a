"""`align score`: the scores of images on disk, as a table, CSV or JSON."""

import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from align.commands.values import SETTING, home, settings_among
from align.errors import UserError
from align.files.output import check_file, write

MANY = ("--reward", "--set")


class Many(TyperCommand):
    """`--reward a b` means `--reward a --reward b`, and images may come after it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        spread: list[str] = []
        option = ""
        for arg in args:
            if arg.startswith("-"):
                option = arg if arg in MANY else ""
            elif option and spread[-1] != option:
                if option == "--reward" and (SETTING.match(arg) or _names_images(arg)):
                    option = ""
                else:
                    spread.append(option)
            spread.append(arg)
        return super().parse_args(ctx, spread)


def _names_images(arg: str) -> bool:
    from align.evaluation.score_inputs import SUFFIXES
    from align.registry import REWARDS

    path = Path(arg)
    return (
        path.suffix.lower() in SUFFIXES or any(c in arg for c in "*?") or (path.exists() and arg not in REWARDS.names())
    )


def score(
    images: Annotated[list[str], typer.Argument(help="Files, folders or globs.")],
    reward: Annotated[list[str], typer.Option(help="One or more: a name, or my_label=name (align rewards).")],
    prompts: Annotated[
        str | None,
        typer.Option(
            help="A text for all; a file (.txt, .jsonl, .csv, .tsv, .json) or a set. Default: NAME.txt beside it."
        ),
    ] = None,
    change: Annotated[list[str] | None, typer.Option("--set", help="A setting: --set clip.model=...")] = None,
    form: Annotated[str | None, typer.Option("--format", help="table, csv or json; default: by the output.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write it here, not to the screen.", callback=home)
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", "--batch", min=1, help="Images at once; only of the same size go together.")
    ] = 16,
    num_processes: Annotated[int | None, typer.Option(min=1, help="Default: one a GPU, else one.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Score images with one or more rewards: align score out/*.png --prompts prompts.txt --reward clip aesthetic."""
    from align.data._readable import readers, refuse
    from align.evaluation.score_inputs import find_images, pair, reward_configs

    if form not in (None, "table", "csv", "json"):
        raise UserError(f"--format {form}: is none. Choose table, csv or json.")
    form = form or ("table" if output is None else output.suffix.removeprefix(".").lower())
    if form not in ("table", "csv", "json"):
        raise UserError(f"--output {output}: its ending says no format. End it in .csv or .json, or give --format too.")
    images, changes = settings_among(images, change)
    rewards = reward_configs(reward, changes)
    rows = pair(find_images(images), prompts)
    refuse("--prompts", [row.prompt for row in rows], readers({}, rewards))
    if output is not None:
        output = check_file(output, "--output")
    from align.evaluation.score import default_processes, score_in_processes

    unread: dict[int, str] = {}
    with _progress(len(rows), shown=not quiet and sys.stderr.isatty()) as done:
        scores = score_in_processes(
            rows,
            rewards,
            num_processes=num_processes or default_processes(),
            batch_size=batch_size,
            done=done,
            unread=unread.__setitem__,
        )
    for _, why in sorted(unread.items()):
        typer.echo(why, err=True)
    rows = [row for i, row in enumerate(rows) if i not in unread]
    scores = [found for i, found in enumerate(scores) if i not in unread]
    if rows:
        _put(rows, scores, rewards, form, output)
    if unread:  # the others are scored all the same
        raise typer.Exit(2)


def _put(
    rows: Sequence[Any], scores: Sequence[dict[str, float]], rewards: dict[str, Any], form: str, output: Path | None
) -> None:
    licences = {label: config.licence_text() for label, config in rewards.items()}
    text = _json(rows, scores, licences) if form == "json" else {"table": _table, "csv": _csv}[form](rows, scores)
    if output is None:
        typer.echo(text.rstrip("\n"))
        return
    try:
        write(output, text, "--output")
    except UserError:  # a disk that is full: what took so long is not lost
        typer.echo(text.rstrip("\n"))
        raise


@contextmanager
def _progress(total: int, *, shown: bool) -> Iterator[Any]:
    if not shown:
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("scoring", total=total)
        yield lambda count: bar.advance(task, count)


def means(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    """{label: mean over all images}."""
    return {label: sum(row[label] for row in scores) / len(scores) for label in scores[0]}


def _table(rows: Sequence[Any], scores: Sequence[dict[str, float]]) -> str:
    labels = list(scores[0])
    lines = [["image", "prompt", *labels]]
    for row, found in zip(rows, scores, strict=True):
        lines.append([_short(row.image, 40, middle=True), _short(row.prompt, 40), *(f"{found[x]:.4f}" for x in labels)])
    average = means(scores)
    lines.append([f"mean of {len(rows)}", "", *(f"{average[x]:.4f}" for x in labels)])
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    text = [[cell.ljust(w) if k < 2 else cell.rjust(w) for k, (cell, w) in enumerate(zip(x, widths, strict=True))]
            for x in lines]  # fmt: skip
    return "\n".join("  ".join(cells).rstrip() for cells in text) + "\n"


def _short(text: str, length: int, *, middle: bool = False) -> str:
    text = " ".join(text.split())
    if len(text) <= length:
        return text
    kept = length // 2 if middle else length - 3  # of a file both its folder and number, and how it ends
    return f"{text[:kept]}...{text[kept + 3 - length :] if middle else ''}"


def _csv(rows: Sequence[Any], scores: Sequence[dict[str, float]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["image", "prompt", *scores[0]])
    writer.writerows([row.image, row.prompt, *found.values()] for row, found in zip(rows, scores, strict=True))
    return file.getvalue()


def _json(rows: Sequence[Any], scores: Sequence[dict[str, float]], licences: dict[str, str]) -> str:
    images = [{**row._asdict(), "scores": found} for row, found in zip(rows, scores, strict=True)]
    return json.dumps({"images": images, "mean": means(scores), "licences": licences}, indent=2) + "\n"
