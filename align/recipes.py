"""Where recipes are found: the working directory, then those packaged with the toolkit, then the checkout's."""

import difflib
from pathlib import Path

from align.errors import UserError

_PACKAGE = Path(__file__).parent


def folders() -> list[Path]:
    """The folders of named recipes, first found first; accelerate's configurations among them are not recipes."""
    return [Path("recipes"), _PACKAGE / "_recipes", _PACKAGE.parent / "recipes"]


def names() -> dict[str, Path]:
    """{"draft/shapes": its file}, sorted; a recipe of the working directory hides a packaged one of the same name."""
    found: dict[str, Path] = {}
    for folder in folders():
        for path in sorted(folder.glob("*/*.yaml")):
            if path.parent.name != "accelerate":
                found.setdefault(f"{path.parent.name}/{path.stem}", path)
    return dict(sorted(found.items()))


def find(name: str | Path) -> Path:
    """The file of a recipe: a path, a run's folder (its recipe.yaml), or a name such as draft/shapes."""
    path = Path(name).expanduser()
    candidates = [path, path / "recipe.yaml", path.with_name(f"{path.name}.yaml")]
    candidates += [folder / f"{name}.yaml" for folder in folders()]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    known = list(names())
    close = difflib.get_close_matches(str(name).removeprefix("recipes/").removesuffix(".yaml"), known, n=1)
    hint = f' Did you mean "{close[0]}"?' if close else ""
    raise UserError(f'recipe "{name}": there is no such file and no such recipe.{hint} `align recipes` lists them.')
