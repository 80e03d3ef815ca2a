"""Recipes of published models on tiny ones of their families."""

import importlib
from pathlib import Path

from align.registry import MODELS


def tiny(family: str, folder: Path) -> dict[str, str]:
    """Overrides that put a tiny checkpoint of the family in place of the published one."""
    parts = importlib.import_module(f"tiny_families.{family}")
    parts.build(MODELS.get(family).published[0]).save_pretrained(folder)
    settings = getattr(parts, "SETTINGS", {})
    return {"model.checkpoint": str(folder), **{f"model.{key}": value for key, value in settings.items()}}
