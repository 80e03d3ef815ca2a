"""`align publish`: what of a run is published, as an explicit list of files; nothing else leaves the machine.

Folders of this machine that a recipe names are cut to their last part in every text, and `output` is left out.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from align.config import Recipe, load_recipe
from align.errors import UserError
from align.files import code
from align.files.near import near
from align.files.output import check_folder, whole_folder
from align.files.output import write as write_file
from align.policy import adapter_file, soft_prompt
from align.reports import summary
from align.share import card
from align.training import evaluate

MAX_IMAGES = 12
IMAGES = "images"
DATA = re.compile(r"\.(txt|jsonl?|csv|tsv|ya?ml|py|parquet|png|jpe?g|webp|safetensors|pth?|bin|ckpt)$", re.IGNORECASE)


class File(NamedTuple):
    """One file of the published repository."""

    name: str
    """Its path there."""
    content: bytes


def compose(run: Path, repo: str, *, licence: str | None = None) -> list[File]:
    """The files that publishing a finished run to `repo` (owner/name) consists of."""
    check_name(repo)
    run = run.expanduser()
    if missing := [name for name in (summary.FILE_NAME, adapter_file.RECIPE) if not (run / name).is_file()]:
        raise UserError(f"{run}: no finished run is here (no {missing[0]}).{near(run)} Finish it with align train.")
    tokens = soft_prompt.locate(run)
    weights = tokens or adapter_file.locate(run)[0]
    (soft_prompt if tokens else adapter_file).read(weights)  # whole, and in the format that the card promises
    recipe, found = load_recipe(run / adapter_file.RECIPE, on_disk=False), summary.read(run)
    shown, pictures = _pictures(run)
    hide = _hider(recipe, run, found.model)
    return [
        File(card.FILE_NAME, hide(card.text(recipe, found, repo, shown, licence)).encode()),
        File(weights.name, weights.read_bytes()),
        File(adapter_file.RECIPE, hide(_recipe(recipe)).encode()),
        File(summary.FILE_NAME, hide(found.model_dump_json(indent=2) + "\n").encode()),
        *pictures,
    ]


def left_out(run: Path) -> list[str]:
    """The names of the author's own files that the run's recipe needs and that are not published."""
    return code.own(load_recipe(run.expanduser() / adapter_file.RECIPE, on_disk=False).dump())


def check_name(repo: str) -> None:
    """Raises a UserError unless `repo` can be the name of a repository on the Hub, owner/name."""
    part = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
    if not re.fullmatch(f"{part}/{part}", repo) or ".." in repo or "--" in repo or repo.endswith((".git", ".", "-")):
        raise UserError(f"{repo}: not a name on the Hub. Write owner/name, of letters, digits, '-', '_' and '.'.")


def write(files: list[File], folder: Path) -> list[Path]:
    """Writes the files into a folder that is new or empty, for a look before they are published."""
    folder = check_folder(folder, "--output", empty=True)
    with whole_folder(folder, "--output") as place:
        for file in files:
            write_file(place / file.name, file.content, "--output")
    return [folder / file.name for file in files]


def _pictures(run: Path) -> tuple[card.Shown, list[File]]:
    """The grid and the first images of the report, before and after; none where the recipe had no report."""
    folder, files = run / evaluate.FOLDER, []
    told = evaluate.read(run)
    grid = run / evaluate.PICTURE
    if grid.is_file():
        files.append(File(grid.name, grid.read_bytes()))
    images: dict[str, str] = {}
    for number, prompt in enumerate(told.prompts[:MAX_IMAGES] if told else ()):
        for when in ("before", "after"):
            path = folder / f"{number:04d}-{when}.png"
            if path.is_file():
                files.append(File(f"{IMAGES}/{path.name}", path.read_bytes()))
                images |= {f"{IMAGES}/{path.name}": prompt} if when == "after" else {}
    return card.Shown(grid.name if grid.is_file() else None, images), files


def _recipe(recipe: Recipe) -> str:
    tree = {key: value for key, value in recipe.dump().items() if key != "output"}
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=1000)


def _hider(recipe: Recipe, run: Path, model: str = "") -> Any:
    """A function that cuts the folders of this machine out of a text; `model` is as the run's summary says it."""
    said = {place for text in _strings(recipe.dump()) for place in _places(text)}
    said |= {text for text in (model, model.partition(" ")[2]) if any(place.endswith(f"/{text}") for place in said)}
    places = said | {str(Path.home()), str(run.resolve()), str(Path.cwd())}
    found = sorted((place for place in places if _last(place)), key=len, reverse=True)

    def hide(text: str) -> str:
        for place in found:  # whole paths only: /app is not in owner/app-x
            text = re.sub(rf"(?<![\w.-]){re.escape(place)}(?![\w-])", lambda _, place=place: _last(place), text)
        return text

    return hide


def _places(text: str) -> Iterator[str]:
    """The paths of this machine in a setting, absolute or not: all that has folders in it and is no Hub id."""
    place = re.sub(r"(\.py|\.safetensors):.*$", r"\1", text)  # code and weights are named with what is meant in them
    folders = re.split(r"[/\\]", place)
    if len(folders) < 2 or "\n" in place or "://" in place:
        return
    outside = place.startswith((".", "~", "/", "\\")) or re.match(r"[A-Za-z]:[/\\]", place)
    of_the_hub = re.fullmatch(r"[\w.-]+/[\w.-]+:.+", text) and not place.endswith(".py")
    plain = " " not in place and (len(folders) > 2 or Path(place).exists())
    if outside or (not of_the_hub and (plain or DATA.search(place))):
        yield place
        if outside and (folder := re.fullmatch(r"(.*[/\\][^/\\:]+):[^/\\]+", place)):  # a file by its folder
            yield folder[1]


def unplaced(text: str) -> str:
    """A setting with each folder of this machine in it cut to its last part; a Hub id and an embedded name stay."""
    for place in sorted(_places(text), key=len, reverse=True):
        text = text.replace(place, _last(place))
    return text


def _last(place: str) -> str:
    """The last part of a path of any system; "" where there is none."""
    parts = [part for part in re.split(r"[/\\]", place) if part not in ("", ".", "..", "~")]
    return parts[-1] if parts else ""


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
