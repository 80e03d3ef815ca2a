"""Diffusion alignment and reward fine-tuning: (batch source) x (objective) x (trainable).

    import align
    run = align.train("draft/shapes", **{"train.num_updates": 20})
    run.pipeline(); run.metrics

Importing this package imports no torch: the names below are resolved on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from align import shadow

shadow.claim()

__version__ = "0.1.0"

if TYPE_CHECKING:
    from align.config import Recipe, load_recipe
    from align.errors import UserError
    from align.run import Run, train

_HOME = {"train": "run", "Run": "run", "Recipe": "config", "load_recipe": "config", "UserError": "errors"}

__all__ = ["Recipe", "Run", "UserError", "load_recipe", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'align' has no attribute {name!r}")
    return getattr(import_module(f"align.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
