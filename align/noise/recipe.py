"""Which recipe optimises the noise of a given model: the one made for it, or the one for any."""

from align import recipes
from align.source import Source


def recipe_of(model: str) -> tuple[str, dict[str, str]]:
    """The recipe made for this checkpoint or bare network, or the one for any; and the changes that put it there."""
    for name, path in recipes.names().items():
        if name.startswith("reno/"):
            block = Source.read(path).tree.get("model", {})
            if model == block.get("checkpoint") and "network" not in block:
                return name, {"model.checkpoint": model}
            if model == block.get("network"):
                return name, {f"model.{key}": block[key] for key in ("checkpoint", "network")}
    return "reno/any", {"model.checkpoint": model}
