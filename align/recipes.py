"""Where recipes are found: the working directory, then those packaged with the toolkit, then the checkout's."""

import difflib
from pathlib import Path

from align.errors import UserError
from align.files.near import near

_PACKAGE = Path(__file__).parent
RECIPE = "recipe.yaml"  # in a run's folder
BESIDE = ("checkpoints", "adapter", "metrics.jsonl", "summary.json")  # what a run leaves there


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
    if not str(name).strip():
        raise UserError("recipe: its name is empty. Give a recipe, its file, or a run; `align recipes` lists some.")
    candidates = [path, path / RECIPE, *([path.with_name(f"{path.name}.yaml")] if path.name else [])]
    candidates += [folder / f"{name}.yaml" for folder in folders()]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    known = list(names())
    word = str(name).removeprefix("recipes/").removesuffix(".yaml")
    if of_method := [one for one in known if one.startswith(f"{word}/")]:
        raise UserError(f'recipe "{name}": is a method. Its recipes: {", ".join(of_method)}.')
    close: list[str] = []
    if path.suffix not in (".yaml", ".yml") or "/" in word:
        close = [one for one in known if len(word) > 2 and one.startswith(word)]
        close = close or difflib.get_close_matches(word, known, n=1)
    if not close and path.parent.is_dir():  # mine.yml for mine.yaml
        beside = {file.stem: str(file) for file in path.parent.glob("*.yaml")}
        close = [beside[stem] for stem in difflib.get_close_matches(path.stem, beside, n=1)]
    if path.is_dir():
        raise UserError(f'recipe "{name}": is a folder without a {RECIPE}. Name a recipe, its file, or a run.')
    hint = near(path) if len(path.parts) > 1 else ""  # a run's folder
    hint = hint or (f' Did you mean "{close[0]}"?' if close else "")
    raise UserError(f'recipe "{name}": there is no such file, run or recipe.{hint} `align recipes` lists them.')


def run_folder(source: str | Path, path: Path) -> Path | None:
    """The folder of the run whose recipe `path` is: the one that was named, wherever the recipe says that it lies; None
    for a recipe that is no run's. A run's recipe by its file is told by what lies beside it."""
    if path.name != RECIPE or "output" not in path.read_text(encoding="utf-8", errors="replace"):
        return None
    named = Path(source).expanduser()
    is_run = named.is_dir() or any((path.parent / name).exists() for name in BESIDE)
    return (named if named.is_dir() else path.parent) if is_run else None
