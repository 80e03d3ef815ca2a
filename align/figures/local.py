"""A page served to this machine alone.

It listens on the loopback interface. Its address holds a secret of this run, without which everything is forbidden, so
that another user or page of the machine cannot read or act. Requests must name this server as their Host, or a foreign
name that was made to point here would be as good (DNS rebinding). No path is ever taken from a request.
"""

import hmac
import json
import secrets
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LOOPBACK = "127.0.0.1"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
HTML = "text/html; charset=utf-8"


class Local(ThreadingHTTPServer):
    """Serves until `shutdown`; port 0 takes a free one."""

    daemon_threads = True

    def __init__(self, port: int, handler: "type[Guarded]"):
        super().__init__((LOOPBACK, port), handler)
        self.secret = secrets.token_urlsafe(24)
        self.hosts = {f"{name}:{self.server_port}" for name in (LOOPBACK, "localhost")}

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://{LOOPBACK}:{self.server_port}/{self.secret}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A window that was closed while it was answered is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Guarded(BaseHTTPRequestHandler):
    """One request to a `Local`; what is not for it is refused by `below`."""

    server: Local  # type: ignore[assignment]
    policy = "default-src 'none'; base-uri 'none'; frame-ancestors 'none'"
    """What the page may load (Content-Security-Policy)."""
    protocol_version = "HTTP/1.1"
    timeout = 30
    server_version, sys_version = "align", ""

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line would hold the secret."""

    def below(self) -> str | None:
        """What is asked for below the secret; None where it was refused."""
        if self.headers.get("Host") not in self.server.hosts:
            self.refuse(HTTPStatus.MISDIRECTED_REQUEST)
            return None
        _, secret, *rest = (self.path.partition("?")[0] + "//").split("/", 2)
        if not hmac.compare_digest(secret.encode(), self.server.secret.encode()):
            self.refuse(HTTPStatus.FORBIDDEN)
            return None
        return rest[0].removesuffix("//").removesuffix("/")

    def do_POST(self) -> None:
        """Nothing, unless a page takes some."""
        self.close_connection = True  # a body that is refused is not read
        self.refuse(HTTPStatus.METHOD_NOT_ALLOWED)

    def json(self, value: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        """Answers with JSON."""
        self.answer(json.dumps(value), "application/json", status)

    def refuse(self, status: HTTPStatus) -> None:
        """Answers with no more than the status."""
        self.answer(status.phrase, "text/plain; charset=utf-8", status)

    def answer(self, said: str | bytes, kind: str = HTML, status: HTTPStatus = HTTPStatus.OK) -> None:
        """Answers with text or bytes."""
        data = said.encode() if isinstance(said, str) else said
        self.send_response(status)
        for name, value in {"Content-Security-Policy": self.policy, **HEADERS}.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
