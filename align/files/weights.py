"""The one reader of weights that users name: a .safetensors that is whole, or a line that says what it is instead."""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from align.errors import UserError


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """({name: tensor}, the header's metadata)."""
    check(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # safe_open is no mapping
    except (SafetensorError, OSError) as error:
        raise _broken(path, error) from None


def metadata(path: Path) -> dict[str, str]:
    """The header's metadata alone; no tensor is read."""
    check(path)
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def check(path: Path) -> None:
    """Raises a UserError unless the file can be opened as .safetensors; its tensors are not read."""
    try:
        with path.open("rb") as file:
            head = file.read(256)
        if problem := _other_file(head):
            raise UserError(f"{path}: {problem}")
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise _broken(path, error) from None


def _broken(path: Path, error: Exception) -> UserError:
    said = getattr(error, "strerror", None) or str(error)
    return UserError(f"{path}: not a safetensors file that is whole ({said}). Make it again.")


def _other_file(head: bytes) -> str:
    """What a file is whose first bytes say that it is no safetensors."""
    if head[8:9] == b"{":
        return ""
    start = head.lstrip()[:64].lower()
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer in place of the weights. Fetch them: git lfs pull, or download the file itself."
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page and no weights. Download the file itself (on the Hub: /resolve/, not /blob/)."
    if head.startswith(b"PK\x03\x04") or head.startswith(b"\x80"):
        return "a torch pickle, which can run code and is not read. Save it as .safetensors."
    return "" if len(head) >= 8 else "is empty or cut short. Fetch it again."
