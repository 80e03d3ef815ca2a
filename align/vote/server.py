"""The page of `align vote` (align/figures/local.py: to this machine alone).

What changes something must come from the page itself (Origin). Pictures are handed out by their place on the open
ballot, drawn anew without what their files say of themselves.
"""

import io
import json
import re
import threading
from functools import lru_cache
from http import HTTPStatus
from typing import Any

from align.figures import pages
from align.figures.local import Guarded, Local
from align.vote.ballots import Votes
from rewards._images import read_pil

CSS, SCRIPT = "text/css; charset=utf-8", "text/javascript; charset=utf-8"
FILES = {"style.css": CSS, "vote.css": CSS, "vote.js": SCRIPT}
MOST_BYTES = 4096  # of a vote
PICTURE = re.compile(r"picture/([0-9a-f]{16})/([0-7])")


class Server(Local):
    """Serves until `shutdown`; port 0 takes a free one."""

    def __init__(self, votes: Votes, port: int = 0):
        super().__init__(port, Handler)
        self.votes, self.lock = votes, threading.Lock()

    def state(self) -> dict[str, Any]:
        """What the page shows now."""
        votes, ballot = self.votes, self.votes.open()
        said: dict[str, Any] = {"how": votes.how, "done": votes.done(), "total": len(votes.asked)}
        said |= {"undo": votes.last() is not None, "ballot": None}
        if ballot is not None:
            said |= {"ballot": ballot.key, "prompt": ballot.prompt, "count": len(ballot.images)}
        return said


class Handler(Guarded):
    """One request."""

    server: Server
    policy = (
        "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )

    def do_GET(self) -> None:
        name = self.below()
        if name is None:
            return
        if name == "":
            votes = self.server.votes
            self.answer(pages.page("vote.html", title=f"{len(votes.asked)} ballots: {votes.how}"))
        elif name in FILES:
            self.answer((pages.TEMPLATES / name).read_bytes(), FILES[name])
        elif name == "state":
            with self.server.lock:
                self.json(self.server.state())
        elif found := PICTURE.fullmatch(name):
            self._picture(found[1], int(found[2]))
        else:
            self.refuse(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        self.close_connection = True  # a body that is refused is not read
        name = self.below()
        if name is None:
            return
        if self.headers.get("Origin") not in {f"http://{host}" for host in self.server.hosts}:
            self.refuse(HTTPStatus.FORBIDDEN)
            return
        said = self._body()
        if said is None:
            return
        with self.server.lock:
            try:
                self._done(name, said)
            except OSError:  # of the file of votes; one of the connection has nobody to be told
                self.refuse(HTTPStatus.INSUFFICIENT_STORAGE)

    def _done(self, name: str, said: dict[str, Any]) -> None:
        """Does what is asked, and answers with what the page then shows."""
        votes, ballot = self.server.votes, self.server.votes.open()
        if name == "vote":
            if ballot is None or said.get("ballot") != ballot.key:
                self.json(self.server.state(), HTTPStatus.CONFLICT)  # another window was quicker
                return
            try:
                votes.vote(ballot, said.get("choice"))
            except ValueError:
                self.refuse(HTTPStatus.BAD_REQUEST)
                return
        elif name == "undo":
            votes.undo()
        elif name == "finish":
            threading.Thread(target=self.server.shutdown, daemon=True).start()
        else:
            self.refuse(HTTPStatus.NOT_FOUND)
            return
        self.json(self.server.state())

    def _body(self) -> dict[str, Any] | None:
        length = self.headers.get("Content-Length", "")
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip()
        if kind != "application/json" or not length.isdecimal() or int(length) > MOST_BYTES:
            self.refuse(HTTPStatus.BAD_REQUEST)
            return None
        try:
            said = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            said = None
        if not isinstance(said, dict):
            self.refuse(HTTPStatus.BAD_REQUEST)
            return None
        return said

    def _picture(self, key: str, place: int) -> None:
        with self.server.lock:
            ballot = next((b for b in self.server.votes.asked if b.key == key), None)
        if ballot is None or place >= len(ballot.shown):
            self.refuse(HTTPStatus.NOT_FOUND)
            return
        try:
            data = _png(ballot.images[ballot.shown[place]])
        except Exception:  # a file that was there at the start and is gone, or damaged
            self.refuse(HTTPStatus.GONE)
            return
        self.answer(data, "image/png")


@lru_cache(maxsize=32)
def _png(path: str) -> bytes:
    """The picture's levels alone: what its file says of where it comes from is not shown."""
    stream = io.BytesIO()
    read_pil(path).save(stream, format="PNG")
    return stream.getvalue()
