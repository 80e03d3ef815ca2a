"""Folders and files of this machine that a recipe's model is made of: a run names them whole, to be opened anywhere.

A path counts from the working folder. From another one, models/mine would be taken for a repository on the Hub.
"""

from pathlib import Path
from typing import Any

KEYS = ("checkpoint", "config_dir", "network", "base_adapter")
"""Of the block `model`: what may be a path, a Hub id, or either with `:FILE` behind it."""


def whole(tree: dict[str, Any]) -> dict[str, Any]:
    """`tree`, a recipe, with each path of its model that leads somewhere from the working folder made absolute."""
    model = tree.get("model")
    if not isinstance(model, dict):
        return tree
    found = {key: _whole(text) for key, text in model.items() if key in KEYS and isinstance(text, str) and text}
    return {**tree, "model": {**model, **found}}


def _whole(text: str) -> str:
    folder, _, file = text.partition(":")
    for place, there in ((text, Path(text)), (folder, Path(folder) / file)):
        if place and not place.startswith("~") and not Path(place).is_absolute() and there.exists():
            return f"{Path(place).absolute()}{text[len(place) :]}"
    return text
