"""`align pull`: an adapter from the Hub as a folder that sample, evaluate and export take. Three files are fetched, by
name: the adapter or learnt tokens (.safetensors, which is data and cannot run), its card, and the recipe.

A recipe can name code (`file.py:Class`), which would run when it is used. Such a recipe is refused before anything is
written, unless the caller trusts it.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from align.data._prompt_files import SETS, SHAPES
from align.errors import UserError
from align.policy import adapter_file, soft_prompt
from align.policy.adapter_file import FOLDER, RECIPE
from align.policy.lora import FILE_NAME
from align.policy.soft_prompt import FILE_NAME as TOKENS
from align.registry import EMBEDDED
from align.share import card
from align.share.publish import check_name
from align.share.upload import explain
from align.source import Source

PLACES = {
    FILE_NAME: f"{FOLDER}/{FILE_NAME}",
    TOKENS: f"{FOLDER}/{TOKENS}",
    card.FILE_NAME: f"{FOLDER}/{card.FILE_NAME}",
    RECIPE: RECIPE,
}
"""{file on the Hub: where it goes}."""


def pull(repo: str, output: Path | None = None, *, revision: str | None = None, trust: bool = False) -> Path:
    """Fetches the adapter of `repo` (owner/name) into a folder, by default pulled/NAME, and returns it.

    An earlier pull of the folder is replaced; a folder that holds anything else is left alone.
    """
    check_name(repo)
    folder = output or Path("pulled") / repo.rpartition("/")[2]
    if folder.is_file() or (folder.is_dir() and not _pulled(folder)):
        raise UserError(f"--output {folder}: it holds something else already. Choose another folder.")
    fetched = _fetch(repo, revision)
    if FILE_NAME in fetched:
        adapter_file.read(fetched[FILE_NAME])
    elif TOKENS in fetched:
        soft_prompt.read(fetched[TOKENS])
    else:
        raise UserError(f"{repo}: holds no {FILE_NAME} and no {TOKENS}: it is no adapter in diffusers' format.")
    if RECIPE in fetched and not trust:
        refuse_code(Source.read(fetched[RECIPE]).tree, repo)
    try:
        for name, source in fetched.items():
            target = folder / PLACES[name]
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}")
            temporary.write_bytes(source.read_bytes())
            os.replace(temporary, target)
    except OSError as error:
        raise UserError(f"--output {folder}: cannot be written ({error.strerror}). Choose another folder.") from None
    return folder


def refuse_code(tree: Mapping[str, Any], repo: str) -> None:
    """Raises a UserError if the recipe names code."""
    if named := list(code_in(tree)):
        path, text = named[0]
        more = f" (and {len(named) - 1} more)" if len(named) > 1 else ""
        raise UserError(
            f"{repo}: its recipe names code, {path}: {text}{more}, which would run here. Read the recipe on the Hub "
            "and give --trust-recipe if you trust it."
        )


def code_in(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(key path, text) of everything in a recipe that could be the name of code, `place:name`."""
    if isinstance(value, str):
        place, sign, name = value.partition(":")
        if sign and place and name.isidentifier() and not _is_data(place, name):
            yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from code_in(str(key), f"{path}.{key}".lstrip("."))
            yield from code_in(inner, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from code_in(inner, f"{path}.{number}")


def _is_data(place: str, name: str) -> bool:
    """Whether `place:name` is a checkpoint or a set of prompts of the toolkit's own."""
    bundled = place.isidentifier() and (SETS / f"{place}-{name}.txt").is_file()
    return bundled or f"{place}:" in (EMBEDDED, SHAPES)


def _pulled(folder: Path) -> bool:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} <= {*PLACES.values()}


def _fetch(repo: str, revision: str | None) -> dict[str, Path]:
    """{name: its file in the Hub's cache} of those files that the repository has, all of one commit."""
    from huggingface_hub import HfApi, hf_hub_download

    try:
        info = HfApi(library_name="diffalign").model_info(repo, revision=revision)
        there = {file.rfilename for file in info.siblings or ()}
        return {name: Path(hf_hub_download(repo, name, revision=info.sha)) for name in PLACES if name in there}
    except Exception as error:  # huggingface_hub and its HTTP client each raise their own
        raise UserError(explain(repo, error)) from None
