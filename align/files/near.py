"""What a path with a slip in it may have meant."""

import difflib
from pathlib import Path


def near(path: str | Path) -> str:
    """Such as " Did you mean runs/draft-shapes?", of the folders that lie beside a path that is not there; else ""."""
    path = Path(path).expanduser()
    if path.exists() or not path.parent.is_dir():
        return ""
    beside = {folder.name: folder for folder in path.parent.iterdir() if folder.is_dir()}
    close = difflib.get_close_matches(path.name, beside, n=1)
    return f" Did you mean {beside[close[0]]}?" if close else ""
