"""Whether something on the path hides the toolkit's own packages beside this one."""

import importlib.util
from pathlib import Path


def shadowed() -> dict[str, str]:
    """{package: what hides it} for those of ours that are not the ones beside this package; `rewards` and `samplers`
    are names that other projects use too."""
    home = Path(__file__).resolve().parent.parent
    found = {}
    for name in ("rewards", "samplers"):
        spec = importlib.util.find_spec(name)
        where = Path(spec.origin).resolve().parent if spec and spec.origin else None
        if where != home / name:
            found[name] = (
                f"the package of this name that Python finds is {where or 'none'}, not {home / name}. Run from another "
                "folder, rename the other package, or take its folder off PYTHONPATH."
            )
    return found
