"""What the commands that show a page on this machine share: its port, its address, its end."""

import sys
import webbrowser
from collections.abc import Callable
from typing import TYPE_CHECKING

import typer

from align.errors import UserError

if TYPE_CHECKING:
    from align.figures.local import Local


def serve(make: "Callable[[int], Local]", port: int, said: str, *, browser: bool) -> None:
    """The server that `make` makes at a port (0: a free one), until it ends itself or Ctrl-C does."""
    try:
        server = make(port)
    except OSError as error:
        raise UserError(
            f"--port {port}: cannot be listened on ({error.strerror}). Choose another, or leave it out."
        ) from None
    typer.echo(f"{said} For this machine only:\n{server.address}")
    if browser and sys.stdout.isatty():
        webbrowser.open(server.address)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        typer.echo("")
    finally:
        server.server_close()
