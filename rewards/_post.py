"""JSON to an HTTP server and its answer, by the standard library alone: nothing here depends on a client's version."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, NamedTuple


class Reply(NamedTuple):
    """What came back."""

    status: int
    text: str
    retry_after: float | None
    """Seconds that the server asks to wait for."""


def post(url: str, body: Any, headers: Mapping[str, str], timeout: float) -> Reply:
    """The answer, whatever its status. Raises TimeoutError after `timeout` seconds of silence, and OSError where there
    is no connection or it breaks off."""
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return _reply(answer.status, answer)
    except urllib.error.HTTPError as error:
        with error:
            return _reply(error.code, error)
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise TimeoutError from None
        raise OSError(str(error.reason)) from None
    except http.client.HTTPException as error:
        raise OSError(f"{type(error).__name__} {error}") from None


def _reply(status: int, answer: Any) -> Reply:
    asked = answer.headers.get("Retry-After", "")
    wait = float(asked) if asked.replace(".", "", 1).isdigit() else None
    return Reply(status, answer.read().decode("utf-8", "replace"), wait)
