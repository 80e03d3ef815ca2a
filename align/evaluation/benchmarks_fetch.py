"""One file of a benchmark: from the cache, a folder, or over HTTP, whole or not at all."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import httpx2

from align.errors import UserError
from align.files import cache
from align.files.texts import Unreadable, decode

TIMEOUT = 30.0  # seconds without a byte
MOST = 64 * 2**20  # bytes; the largest of the known files has 6 MB


def fetch(name: str, file: str, source: str, *, alone: bool, option: str = "--prompts") -> tuple[str, str]:
    """(text, where it was read) of `file` of benchmark `name` from `source`, a URL or a folder (`alone`: or the file
    itself). What came from the network is kept, and read from there the next time. `option` named the benchmark."""
    named = f"{option} {name}"
    source = httpx2.URL(source).path if source.startswith("file://") else source
    if "://" not in source:
        path = Path(source).expanduser()
        path = path if alone and path.is_file() else path / _plain(file)
        return _text(_read(path, named), str(path), named), str(path)
    url = source if alone and not source.endswith("/") else str(httpx2.URL(source).join(file))
    kept = (
        cache.folder("benchmarks") / name / f"{hashlib.blake2b(url.encode(), digest_size=4).hexdigest()}-{_plain(file)}"
    )
    if kept.is_file():
        return _text(_read(kept, named), str(kept), named), str(kept)
    data = _download(url, named)
    text = _text(data, url, named)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        temporary = kept.with_name(f".{kept.name}.{os.getpid()}")
        temporary.write_bytes(data)
        os.replace(temporary, kept)
    except OSError:  # a cache that cannot be written costs the next fetch, no more
        return text, url
    return text, str(kept)


def _plain(file: str) -> str:
    """A name for a file on disk; that of a query is made of its words."""
    return re.sub(r"[^\w.-]+", "-", file)


def _download(url: str, named: str) -> bytes:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        raise UserError(f"{named}: HF_HUB_OFFLINE forbids to fetch {url}. Unset it, or {_by_hand(named)}")
    told: Any = {"headers": {"User-Agent": "diffalign"}, "timeout": TIMEOUT, "follow_redirects": True}
    data = bytearray()
    try:
        with httpx2.stream("GET", url, **told) as answer:
            answer.raise_for_status()
            for part in answer.iter_bytes():
                data += part
                if len(data) > MOST:
                    raise UserError(f"{named}: {url} gives more than {MOST >> 20} MiB: this is not the file.")
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        said = f"HTTP {error.response.status_code}" if isinstance(error, httpx2.HTTPStatusError) else error
        raise UserError(f"{named}: {url} cannot be fetched ({said}). Try again, or {_by_hand(named)}") from None
    return bytes(data)


def _by_hand(named: str) -> str:
    return f"download it where there is a network and give it as {named}=FILE_OR_FOLDER."


def _read(path: Path, named: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{named}: {path}: cannot be read ({error.strerror}). Check the path.") from None


def _text(data: bytes, where: str, named: str) -> str:
    try:
        return decode(data, where)
    except Unreadable as error:
        raise UserError(f"{named}: {error}") from None
