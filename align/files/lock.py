"""One process at a time works in a folder: a lock that the system itself lets go when its owner ends, however it ends.

The file stays behind and means nothing by itself; what counts is whether a living process holds it. It says which one.
"""

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from align.errors import UserError

FILE_NAME = ".lock"
PAUSE = 0.2
"""Seconds between two looks whether it is one's turn."""
WINDOWS_PLACE = 2**30
"""The byte that is locked on Windows, where a locked one cannot be read: behind what the file says."""


@contextmanager
def alone(folder: Path, option: str) -> Iterator[None]:
    """Holds `folder`, which is there, while entered; a UserError says who holds it. `option` is what errors call it."""
    try:
        file = (folder / FILE_NAME).open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{option}{folder}: cannot be written ({error.strerror}). Make room, or choose another folder."
        ) from None
    with file:
        if not _taken(file):
            file.seek(0)
            owner = file.read(200).strip() or "another process"
            raise UserError(
                f"{option}{folder}: {owner} works in this folder. Wait until it has ended, end it, or choose another "
                "folder."
            )
        with suppress(OSError):  # a full disk: the lock holds, and only does not say whose it is
            file.seek(0)
            file.truncate()
            file.write(f"process {os.getpid()} on {platform.node()}, since {time.strftime('%Y-%m-%d %H:%M:%S')},\n")
            file.flush()
        yield


@contextmanager
def in_turn(place: Path) -> Iterator[None]:
    """Inside, no other process is at the same `place`, a file's path: waits for its turn. Nothing is left behind."""
    while True:
        with place.open("a+") as file:
            while not _taken(file):
                time.sleep(PAUSE)
            if not _is(file, place):  # who had it has removed it, and the next one may have another of the name
                continue
            try:
                yield
            finally:
                with suppress(OSError):  # Windows removes none that is open
                    place.unlink()
            return


def _is(file: TextIO, place: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), place.stat())
    except FileNotFoundError:
        return False


def _taken(file: TextIO) -> bool:
    """False: somebody else has it. A file system without locks says yes to all."""
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(WINDOWS_PLACE)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True
