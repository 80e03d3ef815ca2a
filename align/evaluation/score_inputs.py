"""What `align score` is given: images by files, folders and globs, their prompts, and rewards with their settings."""

import glob
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from align.data._prompt_files import KINDS, Item, names_a_source
from align.errors import UserError
from align.evaluation.benchmarks import BENCHMARKS
from align.files.texts import Unreadable, read_text
from align.registry import LabelledRewards, RewardConfig
from align.source import Source
from rewards._images import SUFFIXES, hidden, texts
from rewards._numerals import counted


class Row(NamedTuple):
    """An image and its prompt."""

    image: str
    prompt: str


SHEET = "-path.png"


def find_images(patterns: Sequence[str]) -> list[str]:
    """The image files that files, folders (not what is below their folders) and globs name, each once; those of a
    folder or glob in the order of their numbers (2 before 10), without hidden files and sheets of a picture's path that
    `align reno` leaves beside it."""
    found: dict[str, None] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            matches = _images(path.iterdir())
        elif path.is_file():
            matches = [str(path)]
        else:
            matches = _images(map(Path, glob.glob(str(path), recursive=True)))
        if not matches:
            kinds = ", ".join(suffix[1:] for suffix in SUFFIXES)
            if path.is_dir():
                below = f'"{pattern.rstrip("/")}/**/*"'
                raise UserError(
                    f"{pattern}: no image ({kinds}) lies in this folder. For those further down give {below}."
                )
            raise UserError(f"{pattern}: there is no such image. Give files, folders or globs of {kinds}.")
        found |= dict.fromkeys(matches)
    return [name for name in found if not (name.endswith(SHEET) and name.removesuffix(SHEET) + ".png" in found)]


def _images(paths: Iterable[Path]) -> list[str]:
    found = [path for path in paths if path.suffix.lower() in SUFFIXES and not hidden(path) and not path.is_dir()]
    return [str(path) for path in sorted(found, key=_in_order)]


def _in_order(path: Path) -> list[Any]:
    """Numbers within a name count as numbers: 0, 1, 2, 10."""
    parts = re.split(r"(\d+)", str(path))
    return [[int(part), part] if number % 2 else part for number, part in enumerate(parts)]


def pair(images: Sequence[str], prompts: str | None) -> list[Row]:
    """Images with their prompts: one text for all, or a file, a set or a benchmark with a prompt an image.

    A file is read as every command reads it (align/data/_prompt_files.py). Where its rows name images, by their paths
    as given here or by their names with or without ending (which then hold in every folder), each image takes its
    own; otherwise the prompts are in the images' order. Without any prompts, that of NAME.png is the text in NAME.txt
    beside it, or the one that `align sample` has written into the picture.
    """
    if prompts is None:
        return [Row(image, _beside(image)) for image in images]
    if not prompts.strip():
        raise UserError("--prompts: is empty. Write a text for all images, or name a file.")
    if not (names_a_source(prompts) or prompts.partition("=")[0] in BENCHMARKS):
        return [Row(image, prompts) for image in images]
    from align.evaluation.prompts import load

    many = Path(prompts).suffix.lower() not in KINDS and not Path(prompts).expanduser().is_dir()
    items = load(prompts, len(images) if many else None)  # of a set or a benchmark, as many as there are images
    if all(item.image for item in items):
        said = _by_image(items, prompts)
        return [Row(image, _named(said, image, prompts)) for image in images]
    if any(item.image for item in items):
        raise UserError(f"--prompts {prompts}: some rows name an image and some do not. Name one in every row.")
    if len(items) not in (1, len(images)):
        raise UserError(
            f"--prompts {prompts}: {counted(len(items), 'prompt')} for {counted(len(images), 'image')}. Give one "
            "an image, in the images' order (folders and globs: sorted), or a CSV with the columns image and prompt."
        )
    said = [item.prompt for item in items]
    return [Row(*row) for row in zip(images, said * len(images) if len(said) == 1 else said, strict=True)]


def _by_image(items: Sequence[Item], prompts: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in items:
        if found.setdefault(item.image, item.prompt) != item.prompt:
            raise UserError(f"--prompts {prompts}: {item.image} has two prompts. Remove one.")
    return found


def _named(said: Mapping[str, str], image: str, prompts: str) -> str:
    for key in (image, Path(image).name, Path(image).stem):
        if key in said:
            return said[key]
    raise UserError(f"--prompts {prompts}: it has no prompt for {image}. Add a row named {Path(image).name}.")


def _inside(image: str) -> str:
    """The prompt in a PNG of `align sample`; "" in another's (ComfyUI writes its graph under that name) or in none."""
    said = texts(image)
    return said.get("prompt", "").strip() if "diffalign" in said else ""


def _beside(image: str) -> str:
    file = Path(image).with_suffix(".txt")
    if not file.is_file():
        if own := _inside(image):
            return own
        raise UserError(
            f"{image}: it has no prompt. Give --prompts (a text for all images, or a file), or put it into {file.name}."
        )
    try:
        said = read_text(file).strip()
    except Unreadable as error:
        raise UserError(str(error)) from None
    if not said:
        raise UserError(f"{file}: is empty. Write the prompt of {Path(image).name} into it, or give --prompts.")
    return said


def reward_configs(
    names: Sequence[str], changes: Sequence[str], known: Mapping[str, RewardConfig] | None = None
) -> dict[str, RewardConfig]:
    """{label: config} for names (`clip`, or `label=name`) with changes (clip.model=...); says all problems at once.

    A name that is a label of `known` means that reward, with its settings.
    """
    from pydantic import TypeAdapter, ValidationError

    from rewards._config import suggest, wants_text

    tree: dict[str, Any] = {}
    for name in names:
        if "," in name:
            raise UserError(f"--reward {name}: put blanks between rewards: --reward {name.replace(',', ' ')}.")
        label, _, component = name.rpartition("=")
        label = label or component.rpartition("/")[2].replace(":", "_").replace(".", "_")
        if label in tree:
            raise UserError(
                f"--reward {name}: {label} is there already. Give one a label of its own: mine={component}."
            )
        own = known.get(name) if known else None
        tree[label] = {"name": component} if own is None else own.model_dump(mode="json")
    for change in changes:
        label = change.partition("=")[0].partition(".")[0]
        if label not in tree:
            meant = suggest(label, tree) or f" Begin with one of: {', '.join(tree)}."
            raise UserError(f"--set {change}: {label} is no reward here.{meant}")
    source = Source(tree, "--reward")
    source.override(changes)
    while True:
        try:
            return TypeAdapter(LabelledRewards).validate_python(source.tree)
        except ValidationError as error:
            if source.respell(e["loc"] for e in error.errors() if wants_text(e)):
                continue
            lines = [
                f"{'.'.join(map(str, e['loc']))}: {e.get('ctx', {}).get('error', e['msg'])}" for e in error.errors()
            ]
            raise UserError("\n".join(dict.fromkeys(lines))) from None
