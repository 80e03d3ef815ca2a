"""The toolkit's own packages before all others of their names: projects have a `rewards` of theirs too.

Python looks into the working folder first when it is started as `python -m align`, and so does `accelerate launch`.
"""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

NAMES = ("rewards", "samplers")
HOME = Path(__file__).resolve().parent.parent


class Beside:
    """Finds them beside this package, whatever stands earlier on the path."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [str(HOME)]) if path is None and name in NAMES else None


def claim() -> None:
    """From here on an import of one of them finds ours."""
    if Beside not in sys.meta_path:
        sys.meta_path.insert(0, Beside)


def shadowed() -> dict[str, str]:
    """{package: what hides it} for those that were imported from elsewhere before `claim`, or are not there."""
    found = {}
    for name in NAMES:
        spec = importlib.util.find_spec(name)
        where = Path(spec.origin).resolve().parent if spec and spec.origin else None
        if where != HOME / name:
            found[name] = (
                f"the package of this name that Python finds is {where or 'none'}, not {HOME / name}. Run from another "
                "folder, rename the other package, or take its folder off PYTHONPATH."
            )
    return found
