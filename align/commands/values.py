"""Values that options share."""

import math

import typer


def finite(value: float | None) -> float | None:
    """A number that is one: nan and infinity would draw black images without a word."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value}: is no finite number. Give one, such as 0.5.")
    return value
