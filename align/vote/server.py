"""The page of `align vote`, served to this machine alone.

It listens on the loopback interface. Its address holds a secret of this run, without which everything is forbidden, so
that another user or page of the machine cannot read or vote. Requests must name this server as their Host, or a foreign
name that was made to point here would be as good (DNS rebinding), and what changes something must come from the page
itself (Origin). Pictures are handed out by their place on the open ballot, drawn anew without what their files say of
themselves; no path is ever taken from a request.
"""

import hmac
import io
import json
import re
import secrets
import sys
import threading
from functools import lru_cache
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from align.vote.ballots import Votes
from rewards._images import read_pil

HERE = Path(__file__).parent
LOOPBACK = "127.0.0.1"
FILES = {"page.css": "text/css; charset=utf-8", "page.js": "text/javascript; charset=utf-8"}
MOST_BYTES = 4096  # of a vote
POLICY = (
    "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
PICTURE = re.compile(r"picture/([0-9a-f]{16})/([0-7])")


class Server(ThreadingHTTPServer):
    """Serves until `shutdown`; port 0 takes a free one."""

    daemon_threads = True

    def __init__(self, votes: Votes, port: int = 0):
        super().__init__((LOOPBACK, port), Handler)
        self.votes, self.secret, self.lock = votes, secrets.token_urlsafe(24), threading.Lock()
        self.hosts = {f"{name}:{self.server_port}" for name in (LOOPBACK, "localhost")}

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://{LOOPBACK}:{self.server_port}/{self.secret}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A window that was closed while it was answered is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def state(self) -> dict[str, Any]:
        """What the page shows now."""
        votes, ballot = self.votes, self.votes.open()
        said: dict[str, Any] = {"how": votes.how, "done": votes.done(), "total": len(votes.asked)}
        said |= {"undo": votes.last() is not None, "ballot": None}
        if ballot is not None:
            said |= {"ballot": ballot.key, "prompt": ballot.prompt, "count": len(ballot.images)}
        return said


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server  # type: ignore[assignment]
    protocol_version = "HTTP/1.1"
    timeout = 30
    server_version, sys_version = "align", ""

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line would hold the secret."""

    def do_GET(self) -> None:
        name = self._below()
        if name is None:
            return
        if name == "":
            self._page()
        elif name in FILES:
            self._answer(HTTPStatus.OK, (HERE / name).read_bytes(), FILES[name])
        elif name == "state":
            with self.server.lock:
                self._json(self.server.state())
        elif found := PICTURE.fullmatch(name):
            self._picture(found[1], int(found[2]))
        else:
            self._refuse(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        self.close_connection = True  # a body that is refused is not read
        name = self._below()
        if name is None:
            return
        if self.headers.get("Origin") not in {f"http://{host}" for host in self.server.hosts}:
            self._refuse(HTTPStatus.FORBIDDEN)
            return
        said = self._body()
        if said is None:
            return
        with self.server.lock:
            try:
                self._done(name, said)
            except OSError:  # of the file of votes; one of the connection has nobody to be told
                self._refuse(HTTPStatus.INSUFFICIENT_STORAGE)

    def _done(self, name: str, said: dict[str, Any]) -> None:
        """Does what is asked, and answers with what the page then shows."""
        votes, ballot = self.server.votes, self.server.votes.open()
        if name == "vote":
            if ballot is None or said.get("ballot") != ballot.key:
                self._json(self.server.state(), HTTPStatus.CONFLICT)  # another window was quicker
                return
            try:
                votes.vote(ballot, said.get("choice"))
            except ValueError:
                self._refuse(HTTPStatus.BAD_REQUEST)
                return
        elif name == "undo":
            votes.undo()
        elif name == "finish":
            threading.Thread(target=self.server.shutdown, daemon=True).start()
        else:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        self._json(self.server.state())

    def _below(self) -> str | None:
        """What is asked for below the secret; None where it was refused."""
        if self.headers.get("Host") not in self.server.hosts:
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST)
            return None
        _, secret, *rest = (self.path.partition("?")[0] + "//").split("/", 2)
        if not hmac.compare_digest(secret.encode(), self.server.secret.encode()):
            self._refuse(HTTPStatus.FORBIDDEN)
            return None
        return rest[0].removesuffix("//").removesuffix("/")

    def _body(self) -> dict[str, Any] | None:
        length = self.headers.get("Content-Length", "")
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip()
        if kind != "application/json" or not length.isdecimal() or int(length) > MOST_BYTES:
            self._refuse(HTTPStatus.BAD_REQUEST)
            return None
        try:
            said = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            said = None
        if not isinstance(said, dict):
            self._refuse(HTTPStatus.BAD_REQUEST)
            return None
        return said

    def _page(self) -> None:
        votes = self.server.votes
        text = (HERE / "page.html").read_text(encoding="utf-8")
        text = text.replace("{title}", escape(f"{len(votes.asked)} ballots: {votes.how}"))
        self._answer(HTTPStatus.OK, text.encode(), "text/html; charset=utf-8")

    def _picture(self, key: str, place: int) -> None:
        with self.server.lock:
            ballot = next((b for b in self.server.votes.asked if b.key == key), None)
        if ballot is None or place >= len(ballot.shown):
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        try:
            data = _png(ballot.images[ballot.shown[place]])
        except Exception:  # a file that was there at the start and is gone, or damaged
            self._refuse(HTTPStatus.GONE)
            return
        self._answer(HTTPStatus.OK, data, "image/png")

    def _json(self, value: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._answer(status, json.dumps(value).encode(), "application/json")

    def _refuse(self, status: HTTPStatus) -> None:
        self._answer(status, status.phrase.encode(), "text/plain; charset=utf-8")

    def _answer(self, status: HTTPStatus, data: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@lru_cache(maxsize=32)
def _png(path: str) -> bytes:
    """The picture's levels alone: what its file says of where it comes from is not shown."""
    stream = io.BytesIO()
    read_pil(path).save(stream, format="PNG")
    return stream.getvalue()
