"""Prompts in files, for every command and block that takes some: what is a file or a set, and what is in it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from align.files.texts import TABLES, Unreadable, json_lines, json_value, lines, read_text, table
from rewards._config import suggest

KINDS = (".txt", ".jsonl", ".csv", ".tsv", ".json")
OTHERS = (
    ".text",
    ".md",
    ".yaml",
    ".yml",
    ".parquet",
    ".xlsx",
    ".xls",
    ".log",
    ".gz",
    ".zip",
    ".png",
    ".jpg",
    ".safetensors",
)
"""Endings of files that hold no prompts here; a text that is one word with such an ending is meant as a file."""
SETS = Path(__file__).parent / "sets"  # SET-SPLIT.txt, for SET:SPLIT
SHAPES = "shapes:"  # shapes:train, shapes:select, shapes:report
CATEGORY = ("category", "tag", "skill")  # keys and columns that name it, the first that is there
IMAGE = ("image", "file", "file_name")


class Item(NamedTuple):
    """A prompt, the category that its benchmark or file puts it into, and the image that it is for ("" where there is
    none)."""

    prompt: str
    category: str = ""
    image: str = ""


def names_a_source(text: str) -> bool:
    """Whether a text on the command line is plainly a file, a folder or a set, there or not, and not a prompt."""
    if not text.strip() or "\n" in text or len(text) > 1024:
        return False
    if Path(text).suffix.lower() in KINDS:
        return True
    if re.search(r"\s", text.strip()):
        return _there(text)
    return (
        Path(text).suffix.lower() in OTHERS
        or text.startswith(("./", "../", "~/", "/", ".\\", *_beginnings()))
        or text.endswith(("/", "\\"))
        or text.count("/") + text.count("\\") > 1
        or bundled(text) is not None
        or _there(text)
    )


def _there(text: str) -> bool:
    """A file, or a folder with prompts in it; a folder of pictures that is called cat leaves cat a prompt."""
    try:
        path = Path(text).expanduser()
        return path.is_file() or (path.is_dir() and any(file.suffix.lower() in KINDS for file in path.iterdir()))
    except (OSError, ValueError, RuntimeError):  # a text that no path can be
        return False


def bundled(source: str) -> Path | None:
    """The file of a set, if `source` names one."""
    if source.count(":") != 1 or not re.fullmatch(r"[\w-]+:[\w-]+", source):
        return None
    path = SETS / f"{source.replace(':', '-', 1)}.txt"
    return path if path.is_file() else None


def set_names() -> list[str]:
    """Those that lie in files of their own."""
    return sorted(file.stem.replace("-", ":", 1) for file in SETS.glob("*.txt"))


def _beginnings() -> set[str]:
    """What sets begin with: a word that does is none of a prompt, though there be no such set."""
    return {SHAPES, *(f"{name.partition(':')[0]}:" for name in set_names())}


def meant(source: str) -> str:
    """Such as ' Did you mean "shapes:report"?', of the sets; else ""."""
    from align.shapes.prompts import SPLITS

    return suggest(source, [*(f"{SHAPES}{split}" for split in SPLITS), *set_names()])


def read(path: str) -> list[Item]:
    """All prompts of a file; Unreadable otherwise. A .txt has one a line; .jsonl, .csv and .tsv have a prompt a row and
    perhaps a category and an image; .json is a list of prompts or of such rows, or {image: prompt}."""
    suffix = Path(path).suffix.lower()
    if suffix not in KINDS:
        raise Unreadable(
            f"{path}: prompts come from a {', '.join(KINDS[:-1])} or {KINDS[-1]} file, a list, or a set: "
            f"{SHAPES}train, {', '.join(set_names())}.{meant(path)}"
        )
    text = read_text(path)
    if suffix == ".txt":
        items = [Item(line) for _, line in lines(text, path)]
    elif suffix in TABLES:
        items = [_item(row, f"{path}: line {number}") for number, row in table(text, path, suffix)]
    elif suffix == ".jsonl":
        example = '{"prompt": "..."}'
        items = [_item(row, f"{path}: line {number}") for number, row in json_lines(text, path, example)]
    else:
        items = list(_from_json(json_value(text, path), path))
    if not items:
        raise Unreadable(f"{path}: there are no prompts in it. Give at least one.")
    return items


def _from_json(value: Any, path: str) -> Iterator[Item]:
    if isinstance(value, dict) and value and all(isinstance(prompt, str) for prompt in value.values()):
        value = [{"image": image, "prompt": prompt} for image, prompt in value.items()]
    if not isinstance(value, list):
        raise Unreadable(f"{path}: must be a list of prompts, or {{image: prompt}}. Write one of the two.")
    for number, row in enumerate(value, 1):
        yield _item({"prompt": row} if isinstance(row, str) else row, f"{path}: prompt {number}")


def _item(row: Any, where: str) -> Item:
    named = {str(key).strip().lower(): value for key, value in row.items()} if isinstance(row, dict) else {}
    prompt = named.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        said = f" (it has {', '.join(named)})" if named and "prompt" not in named else ""
        raise Unreadable(f"{where} has no text under the key prompt{said}. Give every row one.")
    if "\0" in prompt:
        raise Unreadable(f"{where} holds a NUL character. Remove it.")
    category, image = (next((named[key] for key in keys if named.get(key)), "") for keys in (CATEGORY, IMAGE))
    return Item(prompt.strip(), str(category).strip(), str(image).strip())
