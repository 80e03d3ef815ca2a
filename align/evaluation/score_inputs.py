"""What `align score` is given: images by files, folders and globs, their prompts, and rewards with their settings."""

import csv
import glob
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from align.errors import UserError
from align.registry import LabelledRewards, RewardConfig
from align.source import Source

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


class Row(NamedTuple):
    """An image and its prompt."""

    image: str
    prompt: str


def find_images(patterns: Sequence[str]) -> list[str]:
    """The image files that files, folders (not what is below their folders) and globs name, in order, each once."""
    found: dict[str, None] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            matches = sorted(str(p) for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        elif path.is_file():
            matches = [str(path)]
        else:
            matches = sorted(p for p in glob.glob(str(path), recursive=True) if Path(p).suffix.lower() in SUFFIXES)
        if not matches:
            kinds = ", ".join(suffix[1:] for suffix in SUFFIXES)
            if path.is_dir():
                below = f'"{pattern.rstrip("/")}/**/*"'
                raise UserError(
                    f"{pattern}: no image ({kinds}) lies in this folder. For those further down give {below}."
                )
            raise UserError(f"{pattern}: there is no such image. Give files, folders or globs of {kinds}.")
        found |= dict.fromkeys(matches)
    return list(found)


def pair(images: Sequence[str], prompts: str | None) -> list[Row]:
    """Images with their prompts: one text for all, or a file with a prompt an image.

    A .txt file has one prompt a line, in the images' order; .json is {file name: prompt} or a list; .csv has the
    columns image and prompt. An image is named by its path as given here, or by its name with or without ending, which
    then holds in every folder. Without any prompts, that of NAME.png is the text in NAME.txt beside it.
    """
    if prompts is None:
        return [Row(image, _beside(image)) for image in images]
    file = Path(prompts).expanduser()
    if file.suffix.lower() not in (".txt", ".json", ".csv"):
        return [Row(image, prompts) for image in images]
    try:
        text = file.read_text(encoding="utf-8-sig")
        said = _parse(text, file.suffix.lower())
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"--prompts {prompts}: cannot be read ({reason}). Check the file.") from None
    if isinstance(said, Mapping):
        return [Row(image, _named(said, image, prompts)) for image in images]
    if len(said) not in (1, len(images)):
        raise UserError(
            f"--prompts {prompts}: {len(said)} prompts for {len(images)} images. Give one an image, in the images' "
            "order (folders and globs: sorted), or a CSV with the columns image and prompt."
        )
    return [Row(*row) for row in zip(images, said * len(images) if len(said) == 1 else said, strict=True)]


def _parse(text: str, suffix: str) -> list[str] | dict[str, str]:
    if suffix == ".txt":
        return [line.strip() for line in text.splitlines() if line.strip()]
    if suffix == ".csv":
        rows = list(csv.DictReader(io.StringIO(text)))
        if not rows or not {"image", "prompt"} <= rows[0].keys():
            raise ValueError("it needs the columns image and prompt, with a comma between them")
        found: dict[str, str] = {}
        for row in rows:
            if row["prompt"] is None:
                raise ValueError(f"{row['image']} has no prompt")
            if found.setdefault(row["image"], row["prompt"]) != row["prompt"]:
                raise ValueError(f"{row['image']} has two prompts")
        return found
    said = json.loads(text)
    if isinstance(said, list) and all(isinstance(prompt, str) for prompt in said):
        return said
    if isinstance(said, dict) and all(isinstance(prompt, str) for prompt in said.values()):
        return said
    raise ValueError("it must be a list of prompts, or {image: prompt}")


def _named(said: Mapping[str, str], image: str, prompts: str) -> str:
    for key in (image, Path(image).name, Path(image).stem):
        if key in said:
            return said[key]
    raise UserError(f"--prompts {prompts}: it has no prompt for {image}. Add a row named {Path(image).name}.")


def _beside(image: str) -> str:
    file = Path(image).with_suffix(".txt")
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise UserError(
            f"{image}: it has no prompt. Give --prompts (a text for all images, or a file), or put it into {file.name}."
        ) from None


def reward_configs(
    names: Sequence[str], changes: Sequence[str], known: Mapping[str, RewardConfig] | None = None
) -> dict[str, RewardConfig]:
    """{label: config} for names (`clip`, or `label=name`) with changes (clip.model=...); says all problems at once.

    A name that is a label of `known` means that reward, with its settings.
    """
    from pydantic import TypeAdapter, ValidationError

    from rewards._config import suggest

    tree: dict[str, Any] = {}
    for name in names:
        if "," in name:
            raise UserError(f"--reward {name}: put blanks between rewards: --reward {name.replace(',', ' ')}.")
        label, _, component = name.rpartition("=")
        label = label or component.replace(":", "_").replace("/", "_").replace(".", "_")
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
    try:
        return TypeAdapter(LabelledRewards).validate_python(source.tree)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e.get('ctx', {}).get('error', e['msg'])}" for e in error.errors()]
        raise UserError("\n".join(dict.fromkeys(lines))) from None
