"""Tensors on disk under keys, in sharded safetensors; any process may add shards, and a run that died loses none.

A shard is written under a temporary name, flushed, and renamed to the hash of its own bytes: its name is its checksum.
So a shard is whole or absent, a damaged one is known by its name, and the same rows written twice are one file.
"""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from align.errors import UserError

MAX_OPEN = 64  # shards held open; a file handle each


class TensorStore:
    """{key: {name: tensor}} in `folder`; keys and names hold no slash."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._rows: dict[str, tuple[Path, list[str]]] = {}  # key -> its shard and the names in it
        self._known: set[Path] = set()
        self._open: OrderedDict[Path, Any] = OrderedDict()

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def scan(self, *, verify: bool = False, say: Callable[[str], None] = print) -> None:
        """Takes up the shards that are on disk. With `verify` each is held against its name, and a damaged one is
        removed, so that its rows count as missing; one process does that before the others scan."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if path in self._known:
                continue
            if verify and _digest(path.read_bytes()) != path.stem:
                say(f"{path} is damaged: it is removed, and what it held is made again")
                path.unlink()
                continue
            try:
                with safe_open(path, framework="pt") as shard:
                    self._add(path, list(shard.keys()))
            except SafetensorError as error:
                say(f"{path} is no shard that was written here ({error}): it is left out")

    def write(self, rows: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Adds one shard with these rows."""
        if not rows:
            return
        tensors = {f"{key}/{name}": value.detach().cpu() for key, row in rows.items() for name, value in row.items()}
        data = save({name: value.contiguous() for name, value in tensors.items()})
        path = self.folder / f"{_digest(data)}.safetensors"
        temporary = self.folder / f".{path.stem}-{os.getpid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise UserError(
                f"{self.folder}: cannot be written ({error.strerror}). Set data.cache to a folder of yours with room."
            ) from None
        self._add(path, tensors)

    def read(self, key: str) -> dict[str, Tensor]:
        """The tensors of one key, on the CPU."""
        path, names = self._rows[key]
        shard = self._opened(path)
        return {name: shard.get_tensor(f"{key}/{name}") for name in names}

    def shape(self, key: str, name: str) -> list[int]:
        """The shape of one tensor, without reading it."""
        return self._opened(self._rows[key][0]).get_slice(f"{key}/{name}").get_shape()

    def _opened(self, path: Path) -> Any:
        if path not in self._open:
            try:
                self._open[path] = safe_open(path, framework="pt")
            except OSError as error:
                why = error.strerror or "is gone"
                raise UserError(
                    f"{path}: {why}, while the run was reading it. Start it again: what is missing in the cache is "
                    "encoded again."
                ) from None
            if len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(path)
        return self._open[path]

    def _add(self, path: Path, full_names: Iterable[str]) -> None:
        found: dict[str, list[str]] = {}
        for full in full_names:
            key, _, name = full.partition("/")
            found.setdefault(key, []).append(name)
        self._rows |= {key: (path, names) for key, names in found.items()}
        self._known.add(path)


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
