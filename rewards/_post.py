"""JSON to an HTTP server and its answer. Connections are kept for the next question."""

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import httpx2


class Reply(NamedTuple):
    """What came back."""

    status: int
    text: str
    retry_after: float | None
    """Seconds that the server asks to wait for."""


def post(url: str, body: Any, headers: Mapping[str, str], timeout: float) -> Reply:
    """The answer, whatever its status. Raises TimeoutError after `timeout` seconds of silence, and OSError where there
    is no connection or it breaks off."""
    try:
        answer = _client().post(url, json=body, headers=dict(headers), timeout=timeout)
    except httpx2.TimeoutException:
        raise TimeoutError from None
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise OSError(f"{error}" or type(error).__name__) from None
    asked = answer.headers.get("Retry-After", "")
    wait = float(asked) if asked.replace(".", "", 1).isdigit() else None
    return Reply(answer.status_code, answer.content.decode("utf-8", "replace"), wait)


@cache
def _client() -> httpx2.Client:
    """One for all threads; how many questions are open at once is its callers' to say."""
    return httpx2.Client(limits=httpx2.Limits(max_connections=None))
