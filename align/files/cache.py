"""Where what can be made or fetched again is kept between runs."""

import os
from pathlib import Path

VARIABLE = "ALIGN_CACHE"  # environment variable: the folder; default ~/.cache/diffalign


def folder(name: str) -> Path:
    """The folder `name` of the cache; it may not be there yet."""
    return Path(os.environ.get(VARIABLE) or Path.home() / ".cache" / "diffalign").expanduser() / name
