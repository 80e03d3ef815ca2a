"""`align watch`: a run's curves and pictures while it trains, on a page of this machine or in the terminal."""

import secrets
import sys
import time
import webbrowser
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any

import typer

from align.errors import UserError

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"


def watch(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
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
    try:
        server = server_of(run, every, port)
    except OSError as error:
        raise UserError(
            f"--port {port}: cannot be listened on ({error.strerror}). Choose another, or leave it out."
        ) from None
    typer.echo(f"Ctrl-C ends. For this machine only:\n{server.address}")  # type: ignore[attr-defined]
    if browser and sys.stdout.isatty():
        webbrowser.open(server.address)  # type: ignore[attr-defined]
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        typer.echo("")
    finally:
        server.server_close()


def _screen(run: Path, every: int) -> None:
    """Written over itself until the run is finished or Ctrl-C."""
    from rich.live import Live as Screen
    from rich.text import Text

    from align.reports.live import lines, look

    with Screen(auto_refresh=False) as screen:
        while True:
            live = look(run)
            screen.update(Text("\n".join(lines(live)), no_wrap=True, overflow="ellipsis"), refresh=True)
            if live.finished:
                return
            time.sleep(every)


def server_of(run: Path, every: int, port: int = 0) -> ThreadingHTTPServer:
    """A server of the one page, with the guards of the vote's: this machine, its own name, and a secret address."""
    from align.reports.live import look, page
    from align.vote.server import HEADERS, LOOPBACK, Handler

    class Watch(Handler):
        def do_GET(self) -> None:
            name = self._below()
            if name == "":
                self._answer(HTTPStatus.OK, page(look(run), every).encode(), "text/html; charset=utf-8")
            elif name is not None:
                self._refuse(HTTPStatus.NOT_FOUND)

        def do_POST(self) -> None:
            self.close_connection = True
            self._refuse(HTTPStatus.METHOD_NOT_ALLOWED)

        def send_header(self, keyword: str, value: str) -> None:
            super().send_header(keyword, POLICY if keyword == "Content-Security-Policy" else value)

    class Serving(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A window that was closed while it was answered is no error."""
            if not isinstance(sys.exception(), ConnectionError):
                super().handle_error(request, client_address)

    assert "Content-Security-Policy" in HEADERS
    server: Any = Serving((LOOPBACK, port), Watch)
    server.secret = secrets.token_urlsafe(24)
    server.hosts = {f"{name}:{server.server_port}" for name in (LOOPBACK, "localhost")}
    server.address = f"http://{LOOPBACK}:{server.server_port}/{server.secret}/"
    return server
