"""Where results go, by one rule for every command: the place is tried before the work, a file appears whole or not at
all, and nothing that somebody else has put there is replaced.
"""

import contextlib
import errno
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from align.errors import UserError

REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""What the disk says when it takes no more, whoever asks."""


def check_folder(path: Path, option: str, *, empty: bool = False) -> Path:
    """Raises a UserError unless files can be written into the folder `path`, which may not be there yet; with `empty`
    also if it holds anything. Leaves nothing behind. `option` is what errors call it."""
    path = path.expanduser()
    if path.is_file() or (path.exists() and not path.is_dir()):
        raise UserError(f"{option} {path}: there is something already, and it is no folder. Choose another.")
    if empty and path.is_dir() and any(path.iterdir()):
        raise UserError(f"{option} {path}: there is something already. Choose another folder, or remove it.")
    _try(path, option)
    return path


def check_file(path: Path, option: str, endings: Sequence[str] = ()) -> Path:
    """Raises a UserError unless a file can be written at `path`, whose folder may not be there yet, and its ending is
    one of these. Leaves nothing behind; `write` makes the folder."""
    path = path.expanduser()
    if endings and path.suffix.lower() not in endings:
        raise UserError(f"{option} {path}: its ending says no format. End it in {' or '.join(endings)}.")
    if path.is_dir():
        raise UserError(f"{option} {path}: is a folder. Name a file in it.")
    if path.exists() and not os.access(path, os.W_OK):
        raise UserError(f"{option} {path}: cannot be written (it is read-only). Choose another file.")
    _try(path.parent, option, path)
    return path


def _try(folder: Path, option: str, shown: Path | None = None) -> None:
    """A file made and removed in the folder, or in the nearest one that is there."""
    there = folder.absolute()
    try:
        while not there.exists():
            there = there.parent
        if not there.is_dir():
            raise NotADirectoryError(20, f"{there} is no folder")
        descriptor, name = tempfile.mkstemp(dir=there)
        os.close(descriptor)
        os.unlink(name)
    except OSError as error:
        kind = "folder" if shown is None else "file"
        raise UserError(
            f"{option} {shown or folder}: cannot be written ({error.strerror}). Choose another {kind}."
        ) from None


def make_folder(path: Path, option: str) -> Path:
    """The folder, made where it is not there."""
    check_folder(path, option)
    path = path.expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be made ({error.strerror}). Choose another folder.") from None
    return path


@contextlib.contextmanager
def whole_folder(path: Path, option: str) -> Iterator[Path]:
    """A folder to write into, whose content goes into `path` when all of it is there; where something fails, nothing
    of it stays. `path` is new or empty (check_folder). A UserError says why the system takes no more."""
    path = path.expanduser()
    there, partial = path.exists(), path / f".{os.getpid()}"
    try:
        yield partial
        for child in sorted(partial.iterdir()):
            os.replace(child, path / child.name)
    except UserError as error:
        raise UserError(str(error).replace(str(partial), str(path))) from None
    except Exception as error:  # safetensors and tokenizers raise their own of a full disk
        if (said := _said(error)) is None:
            raise
        raise UserError(f"{option} {path}: cannot be written ({said}). Make room, or choose another folder.") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if not there:
            with contextlib.suppress(OSError):  # it holds what was written
                path.rmdir()


def _said(error: Exception) -> str | None:
    """The system's words in an error; libraries written in Rust raise their own, such as "No space left on device (os
    error 28)". None: it is another error."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    found = re.search(r"([^:]+) \(os error \d+\)", str(error))
    return found and found[1].strip()


def write(path: Path, content: bytes | str, option: str = "") -> Path:
    """Writes a file that appears whole or not at all; a UserError says why it cannot be written."""
    data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name[:200]}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        named = f"{option} {path}".strip()
        raise UserError(f"{named}: cannot be written ({error.strerror}). Make room, or choose another place.") from None
    return path


def write_picture(path: Path, image: Any, option: str = "", **how: Any) -> Path:
    """Writes a PIL image, in the format of the file's ending."""
    from PIL import Image

    data = io.BytesIO()
    image.save(data, Image.registered_extensions()[path.suffix.lower()], **how)
    return write(path, data.getvalue(), option)
