"""The page of `align watch` (align/figures/local.py: to this machine alone), only to be read."""

from http import HTTPStatus
from pathlib import Path

from align.errors import UserError
from align.figures.local import Guarded, Local
from align.reports import live


class Watch(Local):
    """Serves the page of a run's folder as it is when it is asked for."""

    def __init__(self, run: Path, every: int, port: int = 0):
        super().__init__(port, Handler)
        self.run, self.every = run, every


class Handler(Guarded):
    """One request."""

    server: Watch
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"

    def do_GET(self) -> None:
        name = self.below()
        if name is None:
            return
        if name:
            self.refuse(HTTPStatus.NOT_FOUND)
            return
        try:
            self.answer(live.page(live.look(self.server.run), self.server.every))
        except UserError:  # the folder was moved away while it was watched
            self.refuse(HTTPStatus.GONE)
