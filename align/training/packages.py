"""The packages that a recipe's settings need and this machine lacks: a plan says it, as it may be for another machine,
and training refuses before anything is loaded."""

from typing import Any

from align.errors import UserError
from align.models import _quantize
from align.training import optim


def absent(recipe: Any) -> list[str]:
    """A line each: the setting, what it needs, what to do."""
    method = getattr(recipe.model, "quantize", None)
    found = {
        f"optim.algorithm={recipe.optim.algorithm}": optim.missing(recipe.optim),
        f"model.quantize={method}": _quantize.missing(method) if method else None,
    }
    return [f"{setting}: {problem}" for setting, problem in found.items() if problem]


def refuse(recipe: Any) -> None:
    """Raises UserError where one is lacking."""
    if lines := absent(recipe):
        raise UserError("\n".join(lines))
