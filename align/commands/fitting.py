"""Of which family a checkpoint is, and which recipes are made for that family."""

import difflib
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from align import recipes
from align.errors import UserError
from align.registry import EMBEDDED, MODELS, resolve_embedded


class Fit(NamedTuple):
    """A recipe that a checkpoint can be trained by."""

    name: str
    comment: str
    same: bool
    """Whether it is made for this very checkpoint; else model.checkpoint is to be set."""


def family(checkpoint: str) -> str:
    """The name of a checkpoint's family: of published ones known, of others told by their model_index.json."""
    for name in MODELS.names():
        if any(one.checkpoint == checkpoint for one in getattr(MODELS.get(name), "published", ())):
            return name
    auto: Any = MODELS.get("auto")
    try:
        found = auto.family(auto.Config(checkpoint=resolve_embedded(checkpoint)))
    except UserError as error:
        raise UserError(str(error).replace("model.checkpoint=", "--model ", 1)) from None
    return next(name for name in MODELS.names() if MODELS.get(name) is found)


def is_family(name: str) -> bool:
    """Whether a family is called so, and no folder."""
    return name in MODELS.names() and hasattr(MODELS.get(name), "published") and not Path(name).exists()


def fitting(checkpoint: str) -> list[Fit]:
    """The recipes of its family, or of the family so called, those of the same checkpoint first."""
    try:
        wanted = checkpoint if is_family(checkpoint) else family(checkpoint)
    except UserError as error:
        close = difflib.get_close_matches(checkpoint, MODELS.names(), n=1)
        raise (UserError(f'{error} Did you mean the family "{close[0]}"?') if close else error) from None
    found = []
    for name, path in recipes.names().items():
        model = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("model")
        model = model if isinstance(model, dict) else {}
        named = str(model.get("checkpoint", ""))
        if named.startswith(EMBEDDED) and not checkpoint.startswith(EMBEDDED):
            continue  # its rewards and prompts are those of the embedded world
        if _family_of(model, named) == wanted:
            found.append(Fit(name, first_comment(path), named == checkpoint))
    return sorted(found, key=lambda fit: (not fit.same, fit.name))


def _family_of(model: dict[str, Any], named: str) -> str:
    """Without asking the Hub."""
    if (name := str(model.get("name", ""))) != "auto":
        return name
    local = named.startswith(EMBEDDED) or Path(named).expanduser().is_dir()
    return family(named) if local else ""


def first_comment(path: Path) -> str:
    """The line that says what a recipe is."""
    line = path.read_text(encoding="utf-8").partition("\n")[0]
    return line.removeprefix("#").strip() if line.startswith("#") else ""
