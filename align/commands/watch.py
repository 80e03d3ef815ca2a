"""`align watch`: a run's curves and pictures while it trains, on a page of this machine or in the terminal."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from align.commands import page
from align.commands.values import home


def watch(
    run: Annotated[Path, typer.Argument(help="The run's folder.", callback=home)],
    terminal: Annotated[bool, typer.Option("--terminal", "-t", help="In the terminal, without a page.")] = False,
    once: Annotated[bool, typer.Option("--once", help="Say it once in the terminal and end.")] = False,
    every: Annotated[int, typer.Option(min=1, help="Seconds between two looks.")] = 5,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Default: a free one.")] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page.")] = True,
) -> None:
    """Show a run's curves and latest pictures while it trains; reads its folder and changes nothing."""
    from align.reports.live import lines, look

    live = look(run)
    if once:
        typer.echo("\n".join(lines(live)))
        return
    if terminal:
        _screen(run, every)
        return
    from align.reports.live_server import Watch

    page.serve(lambda port: Watch(run, every, port), port, "Ctrl-C ends.", browser=browser)


def _screen(run: Path, every: int) -> None:
    """Written over itself until the run is finished or Ctrl-C."""
    from rich.live import Live as Screen
    from rich.text import Text

    from align.reports.live import lines, look

    try:
        with Screen(auto_refresh=False) as screen:
            while True:
                live = look(run)
                screen.update(Text("\n".join(lines(live)), no_wrap=True, overflow="ellipsis"), refresh=True)
                if live.finished:
                    return
                time.sleep(every)
    finally:
        if not sys.stdout.isatty():  # there the screen ends no line
            typer.echo()
