"""`align vote`: people choose between pictures on a page of this machine, and the choices become training data."""

import itertools
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from align.commands import page
from align.commands.values import home
from align.errors import UserError
from rewards._numerals import counted

if TYPE_CHECKING:
    from align.vote.ballots import Votes


def vote(
    images: Annotated[list[str], typer.Argument(help="Files, folders or globs; those of one prompt are compared.")],
    prompts: Annotated[
        str | None,
        typer.Option(help="A text for all, or a file; default: as align sample wrote it into them, or NAME.txt."),
    ] = None,
    how: Annotated[Literal["best", "rank", "thumbs"], typer.Option(help="What is asked of each ballot.")] = "best",
    most: Annotated[int, typer.Option("--images", "-n", min=2, max=8, help="Pictures side by side, at most.")] = 4,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the votes and the data.", callback=home)
    ] = Path("votes"),
    voter: Annotated[str | None, typer.Option(help="Your name, where several vote on the same pictures.")] = None,
    seed: Annotated[int, typer.Option(help="Of the random places.")] = 0,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Default: a free one.")] = 0,
    export_only: Annotated[
        bool, typer.Option("--export", help="Write the data of the votes there are, no more.")
    ] = False,
    browser: Annotated[bool, typer.Option(help="Open the page.")] = True,
) -> None:
    """Choose the best of pictures side by side, rank them, or give thumbs; exports pairs and labels for recipes."""
    from align.evaluation.score_inputs import find_images
    from align.files.output import make_folder
    from align.vote.agreement import agreement
    from align.vote.ballots import Votes, ballots, everyone
    from align.vote.export import export
    from align.vote.prompts import with_prompts

    if voter is not None and not re.fullmatch(r"[\w-]{1,40}", voter):
        raise UserError(f"--voter {voter}: is part of a file's name. Use letters, digits, - and _, at most 40.")
    rows = with_prompts(find_images(images), prompts)
    asked = ballots(rows, how=how, most=most, seed=seed, voter=voter)
    if not asked:
        raise UserError(
            f"{images[0]}: no prompt has two pictures to compare. Draw more (align sample -n 4), or give --how thumbs."
        )
    is_new = not output.exists()
    folder = make_folder(output, "--output").absolute()
    votes = Votes(folder, asked, how, voter)
    if not export_only:
        serve(votes, port, browser=browser)
    all_votes = {name: one.given.values() for name, one in everyone(folder, how).items()}
    written = export(itertools.chain.from_iterable(all_votes.values()), folder)
    for file, count in written.items():
        typer.echo(f"{file}  {counted(count, 'row')}")
    if not written:
        typer.echo("no choice yet: nothing is written")
        if is_new and not any(folder.iterdir()):
            folder.rmdir()
    elif any(file.name == "pairs.jsonl" for file in map(Path, written)):
        made = [f"data.pairs={output}", "data.make=null", f"output=runs/{output.name}"]
        typer.echo(f"next:  {shlex.join(['align', 'train', 'diffusion_dpo/shapes', *made])}")
    if (alike := agreement(all_votes)) is not None:
        typer.echo(alike)


def serve(votes: "Votes", port: int, *, browser: bool) -> None:
    """Until Finish or Ctrl-C."""
    from align.vote.server import Server

    said = f"{votes.done()} of {len(votes.asked)} ballots have a vote. Ctrl-C or Finish ends."
    page.serve(lambda port: Server(votes, port), port, said, browser=browser)
