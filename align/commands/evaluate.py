"""`align evaluate`: any adapters, mixtures and noise methods against the base, on the same prompts and seeds."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from align.commands.group import recipe_names
from align.commands.values import NEGATIVE, SIZE, STEPS, home, settings_among

Systems = Annotated[
    list[str] | None,
    typer.Argument(help="Runs, adapters (folder, file, Hub id; @0.5 is a strength, A@0.5+B@0.5 a mixture), best-of:8, "
    "reno:20, or base."),
]  # fmt: skip


def evaluate(
    systems: Systems = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            help="File, folder, set (shapes:report) or benchmark: parti, drawbench, geneval, t2i-compbench, "
            "t2i-compbench++, hpdv2, dpg, geneval2, unigenbench, unigenbench-long. Default: the recipe's."
        ),
    ] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(
            help="Ask a benchmark's questions: geneval, geneval2, dpg, t2i-compbench, t2i-compbench++, unigenbench, "
            "unigenbench-long (each also as NAME=FILE), shapes:report, or a file of your own."
        ),
    ] = None,
    count: Annotated[int | None, typer.Option("--count", "-n", min=2, help="So many prompts, all categories.")] = None,
    images: Annotated[
        int, typer.Option("--images", "--num-images", min=1, help="Of each prompt; diversity needs two.")
    ] = 2,
    reward: Annotated[
        list[str] | None, typer.Option(help="Judges: name, or label=name. Default: the recipe's.")
    ] = None,
    strengths: Annotated[str | None, typer.Option(help="Each adapter at each of these: 0,0.25,0.5,1.")] = None,
    mix: Annotated[str | None, typer.Option(help="Two adapters at all pairs of these weights: 0,0.5,1.")] = None,
    against: Annotated[str, typer.Option(help="What all are compared with, written as the arguments are.")] = "base",
    recipe: Annotated[
        str | None,
        typer.Option(help="Model and sampling. Default: the adapter's own recipe.", autocompletion=recipe_names),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Another checkpoint, by folder or Hub id.")] = None,
    seed: Annotated[int | None, typer.Option(help="Default: the recipe's.")] = None,
    batch: Annotated[int, typer.Option("--batch-size", "--batch", min=1, help="Prompts drawn at once.")] = 16,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder of the results; default: evaluation/ARMS-on-PROMPTS.", callback=home
        ),
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="A change to recipe or reward: sampling.num_steps=20, clip.model=..."),
    ] = None,
    steps: STEPS = None,
    size: SIZE = None,
    negative_prompt: NEGATIVE = None,
    vote: Annotated[bool, typer.Option("--vote", help="Then choose by eye, blind: an arm or the baseline.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the page of --vote; default: a free one.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Compare adapters, mixtures and noise methods with the base: same prompts, same seeds, means with intervals,
    categories, diversity, drift, and a page of the images. An interrupted evaluation goes on where it was."""
    systems, changes = settings_among(systems, change, steps=steps, size=size, negative=negative_prompt)
    from align.evaluation.arms import numbers
    from align.evaluation.plan import plan

    made = plan(
        systems,
        recipe=recipe,
        model=model,
        prompts=prompts,
        benchmark=benchmark,
        count=count,
        num_images=images,
        rewards=reward or (),
        changes=changes,
        seed=seed,
        against=against,
        strengths=numbers(strengths, "--strengths"),
        mix=numbers(mix, "--mix"),
        batch_size=batch,
    )
    from align.evaluation.page import PAGE
    from align.evaluation.place import begin, chosen
    from align.evaluation.results import lines
    from align.evaluation.run import Session
    from align.interrupt import Interrupted

    shown, said = not quiet and sys.stderr.isatty(), not quiet and not sys.stderr.isatty()
    folder = chosen(made, output)
    session = Session(made, folder, typer.echo if said else lambda text: None)
    if main := session.accelerator.is_main_process:
        begin(made, folder)
    total = (1 + len(made.cast.arms)) * len(made.items) * images
    try:
        with _progress(total, shown=shown and main, said=said and main) as done:
            found = session.run(done)
    except Interrupted as signal:
        if main:
            typer.echo(f"{signal}: what is finished is kept; the same command goes on from there")
        raise typer.Exit(130 if str(signal) == "SIGINT" else 143) from None
    if found is not None:
        typer.echo("\n".join(lines(found)))
        typer.echo(f"page  {folder / PAGE}")
        if vote:
            _vote(session, folder, port)


def _vote(session: Any, output: Path, port: int) -> None:
    """Serves the arms' pictures for blind choices, and says how often each arm was chosen."""
    from align.commands.vote import serve
    from align.vote.ballots import Votes
    from align.vote.blind import FOLDER, asked, keep, lines, rates, shuffled

    plan, seed = session.plan, session.plan.recipe.train.seed
    ballots = asked(session.folder, plan.cast.baseline, plan.cast.arms, plan.items, seed)
    folder = output.absolute() / FOLDER
    folder.mkdir(exist_ok=True)
    votes = Votes(folder, shuffled(ballots, seed), "best")
    serve(votes, port, browser=True)
    found = rates(ballots, votes.given)
    keep(found, plan.cast.baseline.label, folder)
    typer.echo("\n".join(lines(found, plan.cast.baseline.label)))


@contextmanager
def _progress(total: int, *, shown: bool, said: bool) -> Iterator[Any]:
    if not shown:
        from align.evaluation.pace import Pace

        yield Pace(total, typer.echo).done if said else lambda arm, images: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("images", total=total)
        yield lambda arm, images: bar.update(task, advance=images, description=arm)
