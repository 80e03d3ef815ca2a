"""A chat endpoint on loopback, in OpenAI's form, that looks at the picture it is sent and answers by its mean."""

import base64
import io
import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image


class Judge:
    """What was asked, and what is answered: `behave(number of the request) -> None, or (status, body)` comes first."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.behave: Callable[[int], tuple[int, Any] | None] = lambda number: None
        self.open = self.most = 0
        self.lock = threading.Lock()

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        content = body["messages"][0]["content"]
        picture = content[0]["image_url"]["url"].partition("base64,")[2]
        light = float(np.asarray(Image.open(io.BytesIO(base64.b64decode(picture)))).mean() / 255)
        if not body.get("logprobs"):
            return {"choices": [{"message": {"content": f"I give it {10 * light:.4f} of 10."}}]}
        tokens = [("Yes", 0.6 * light), (" no", 0.6 * (1 - light)), ("yes", 0.3 * light), ("No.", 0.3 * (1 - light))]
        top = [{"token": token, "logprob": math.log(max(p, 1e-30))} for token, p in tokens]
        return {"choices": [{"message": {"content": "Yes"}, "logprobs": {"content": [{"top_logprobs": top}]}}]}


@contextmanager
def judging() -> Iterator[Judge]:
    """A server that runs inside the block."""
    judge = Judge()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with judge.lock:
                judge.asked.append(body)
                judge.keys.append(self.headers.get("Authorization"))
                number, judge.open = len(judge.asked), judge.open + 1
                judge.most = max(judge.most, judge.open)
            status, reply = judge.behave(number) or (200, judge.answer(body))
            text = (reply if isinstance(reply, str) else json.dumps(reply)).encode()
            with judge.lock:
                judge.open -= 1
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)
            except OSError:
                pass  # the client waited no longer

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    judge.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()
