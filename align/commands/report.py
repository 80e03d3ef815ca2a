"""`align report`: write a run's report.html again."""

from pathlib import Path
from typing import Annotated

import typer

from align.commands.values import home


def report(run: Annotated[Path, typer.Argument(help="The run's folder.", callback=home)]) -> None:
    """Write RUN/report.html, one file with all there is to see of a finished run."""
    from align.reports.page import write

    typer.echo(write(run))
