"""A reward behind an HTTP endpoint: what `align serve-reward` runs, the other half of the reward `http`.

    POST /v1/chat/completions   OpenAI's form of a chat: one text, the prompt, and one image as a data URL
    -> the score as the answer's text, to the last bit of a float32
    GET  /v1/models             what is served

Requests that come at the same time are scored together: a thread takes what has arrived within `wait` seconds, at most
`batch` images of one size. A prompt that the reward cannot take is an error of its own request alone.
"""

import base64
import hmac
import json
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from torch import Tensor

from rewards._images import ImageError, read_image

MOST = 64 * 2**20  # bytes of a request
OPEN = 256  # requests that may wait; one more is told to come again
PATIENCE = 600.0  # seconds that a request waits for its score
Score = Callable[[Tensor, Sequence[str]], Tensor]


class Refused(Exception):
    """An answer that is no score: its HTTP status and what to say."""

    def __init__(self, status: int, said: str):
        super().__init__(said)
        self.status = status


@dataclass
class _Asked:
    image: Tensor
    prompt: str
    answer: Future[float] = field(default_factory=Future)


class Batcher:
    """Puts together what is asked at the same time; `score` is called by one thread alone."""

    def __init__(self, score: Score, batch: int = 16, wait: float = 0.02, open_: int = OPEN):
        self.score, self.batch, self.wait = score, batch, wait
        self.sizes: list[int] = []
        """How many images each call of `score` got."""
        self._queue: queue.Queue[_Asked | None] = queue.Queue(open_)
        self._kept: _Asked | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def ask(self, image: Tensor, prompt: str) -> float:
        """The score of one image (3, H, W); waits for it. What `score` raises comes out here."""
        asked = _Asked(image, prompt)
        try:
            self._queue.put_nowait(asked)
        except queue.Full:
            raise Refused(503, "too many requests wait. Ask again later, or lower rewards.*.concurrency.") from None
        return asked.answer.result(PATIENCE)

    def close(self) -> None:
        """Ends the thread after what is at hand."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (rows := self._next()) is not None:
            try:
                found = self._scores(rows)
            except ValueError as error:
                if len(rows) == 1:
                    rows[0].answer.set_exception(Refused(400, str(error)))
                    continue
                for row in rows:  # one of them is at fault, the others are not
                    self._alone(row)
                continue
            except Exception as error:
                for row in rows:
                    row.answer.set_exception(error)
                continue
            for row, value in zip(rows, found, strict=True):
                row.answer.set_result(value)

    def _alone(self, row: _Asked) -> None:
        try:
            row.answer.set_result(self._scores([row])[0])
        except ValueError as error:
            row.answer.set_exception(Refused(400, str(error)))
        except Exception as error:
            row.answer.set_exception(error)

    def _scores(self, rows: Sequence[_Asked]) -> list[float]:
        self.sizes.append(len(rows))
        with torch.no_grad():
            return self.score(torch.stack([row.image for row in rows]), [row.prompt for row in rows]).tolist()

    def _next(self) -> list[_Asked] | None:
        """The next images that go together; None at the end."""
        first = self._kept or self._queue.get()
        self._kept = None
        if first is None:
            return None
        rows, until = [first], time.monotonic() + self.wait
        while len(rows) < self.batch:
            try:
                more = self._queue.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if more is None:
                self._queue.put(None)
                break
            if more.image.shape != rows[0].image.shape:
                self._kept = more
                break
            rows.append(more)
        return rows


def asked_of(body: Any) -> tuple[Tensor, str]:
    """(image (3, H, W) in [0, 1], prompt) of a chat's body."""
    try:
        parts = [part for message in body["messages"] for part in message["content"]]
        texts = [part["text"] for part in parts if part["type"] == "text"]
        urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    except (KeyError, TypeError):
        raise Refused(400, "the request has no messages with a list of contents.") from None
    if len(texts) != 1 or len(urls) != 1 or not all(isinstance(x, str) for x in (*texts, *urls)):
        raise Refused(400, f"the request has {len(texts)} texts and {len(urls)} images. Send one of each.")
    head, _, data = urls[0].partition("base64,")
    if not head.startswith("data:image/"):
        raise Refused(400, "the image is no data URL (data:image/png;base64,...). Nothing is fetched from here.")
    try:
        return read_image(base64.b64decode(data, validate=True), "the image"), texts[0]
    except (ValueError, ImageError) as error:  # also of what is no ASCII
        raise Refused(400, f"the image cannot be read ({error}).") from None


def server(batcher: Batcher, name: str, host: str, port: int, key: str = "") -> ThreadingHTTPServer:
    """A server bound to HOST:PORT (0: any free one) that is not running yet. With a key, requests must bear it."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 60.0
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(lambda: {"object": "list", "data": [{"id": name, "object": "model"}]}, "/models")

        def do_POST(self) -> None:
            self._answer(self._score, "/chat/completions")

        def _score(self) -> dict[str, Any]:
            image, prompt = asked_of(self._body())
            value = batcher.ask(image, prompt)
            message = {"role": "assistant", "content": repr(value)}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            return {"object": "chat.completion", "model": name, "choices": [choice]}

        def _body(self) -> Any:
            length = self.headers.get("Content-Length", "")
            if not length.isdecimal() or int(length) > MOST:
                self.close_connection = True
                raise Refused(413, f"a request says its length, and has at most {MOST >> 20} MiB.")
            try:
                return json.loads(self.rfile.read(int(length)))
            except (ValueError, RecursionError):
                raise Refused(400, "the request is not JSON.") from None

        def _answer(self, make: Callable[[], dict[str, Any]], path: str) -> None:
            try:
                given = self.headers.get("Authorization", "")
                if key and not hmac.compare_digest(given.encode(), f"Bearer {key}".encode()):
                    raise Refused(401, "the key is missing or wrong.")
                if self.path.partition("?")[0].removeprefix("/v1") != path:
                    raise Refused(404, "there are /v1/chat/completions and /v1/models.")
                status, told = 200, make()
            except Refused as error:
                status, told = error.status, {"error": {"message": str(error)}}
            except TimeoutError:
                status, told = 504, {"error": {"message": f"no score within {PATIENCE:g} s."}}
            except Exception as error:  # the reward's own failure is told, and the server goes on
                status, told = 500, {"error": {"message": f"{type(error).__name__}: {error}"}}
            if status >= 400:
                self.close_connection = True
            text = json.dumps(told).encode()
            try:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)
            except OSError:
                pass  # who asked waits no longer

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

    return Server((host, port), Handler)
