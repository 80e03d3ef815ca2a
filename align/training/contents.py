"""What a recipe's names stand for on this machine, as digests: a run that is taken up again is held to the same.

A recipe names prompts, checkpoints, adapters, judges and code by path or by Hub id. What lies there may change between
the parts of a run, and going on would then be neither run. Prompts count as they are read, those that are used; a file
or a folder by its bytes (of large files their size and blocks spread over them); code by its source; a Hub id by the
commit that the machine's cache has for it. Pairs and captioned pictures are compared by their source itself.
"""

import hashlib
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from align.data.prompts import load_prompts
from align.errors import UserError
from align.models._identity import digest
from align.registry import EMBEDDED, ComponentConfig, resolve_embedded

OF_THE_SOURCE = ("data.pairs", "data.labels", "data.cache", "data.folder")
"""Keys whose content the data source compares, or on whose content nothing depends."""
FREE = ("output", "evaluate", "hooks.progress", "hooks.metrics")
WHOLE = 2**26  # bytes that a file is read up to as a whole
BLOCK, NUM_BLOCKS = 2**16, 256
SILENT = (".md", ".png", ".jpg", ".log", ".lock")  # what a model's folder also holds


def of_recipe(recipe: Any) -> dict[str, str]:
    """{key: digest of what it names} for every key that names something on this machine."""
    return {key: found for key, value in _named(recipe, "") if (found := _digest_of(value))}


def _named(config: Any, path: str) -> Iterator[tuple[str, Any]]:
    """(key, prompts as a list, or text that may be a path) of all keys of a tree of configs."""
    if isinstance(config, ComponentConfig):
        fields = {name: getattr(config, name) for name in type(config).model_fields}
        prompts = fields.get("prompts")
        if isinstance(prompts, str):
            count = fields.get("count", fields.get("num_prompts", fields.get("num_images")))
            yield _joined(path, "prompts"), _loaded(prompts, count)
        pinned = fields.get("revision") and not Path(str(fields.get("checkpoint"))).expanduser().exists()
        config = {k: v for k, v in fields.items() if k != "prompts" and not (k == "checkpoint" and pinned)}
    if isinstance(config, Mapping):
        for name, value in config.items():
            key = _joined(path, str(name))
            if key not in FREE and key not in OF_THE_SOURCE:
                yield from _named(value, key)
    elif isinstance(config, str) and config:
        yield path, config


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _loaded(source: str, count: int | None) -> list[str]:
    try:
        return load_prompts(source, count=count, key="prompts")
    except UserError:
        return []  # said where they are read


def _digest_of(value: Any) -> str | None:
    if isinstance(value, list):
        return digest(value)
    place, _, attribute = value.partition(":")
    if value.startswith(EMBEDDED):
        return of_path(Path(str(resolve_embedded(value))))
    if attribute.isidentifier() and (code := _source(place)) is not None:
        return of_path(code)
    for name in (value, place):
        path = Path(name).expanduser()
        if ("/" in name or path.suffix) and path.exists():
            return of_path(path)
    return _commit(place) if place.count("/") == 1 else None


def _source(place: str) -> Path | None:
    """The file of a module or of a path, as rewards and hooks of a user's own are named."""
    if place.endswith(".py"):
        return path if (path := Path(place).expanduser()).is_file() else None
    try:
        spec = importlib.util.find_spec(place) if place.replace(".", "").isidentifier() else None
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec is not None and spec.origin and Path(spec.origin).is_file() else None


def of_path(path: Path) -> str:
    """Of a file, or of all files in a folder but hidden ones and what only tells of the others."""
    if path.is_file():
        return _file(path)
    files = (
        file
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.suffix not in SILENT and not file.relative_to(path).as_posix().startswith(".")
    )
    return digest([[file.relative_to(path).as_posix(), _file(file)] for file in files])


def _file(path: Path) -> str:
    size = path.stat().st_size
    found = hashlib.blake2b(str(size).encode(), digest_size=16)
    with path.open("rb") as opened:
        if size <= WHOLE:
            found.update(opened.read())
        else:
            for number in range(NUM_BLOCKS):
                opened.seek(number * (size - BLOCK) // (NUM_BLOCKS - 1))
                found.update(opened.read(BLOCK))
    return found.hexdigest()


def _commit(repo: str) -> str | None:
    """The commit of a Hub repository's main branch in this machine's cache; None where it has none."""
    from huggingface_hub import constants

    reference = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "refs" / "main"
    return reference.read_text(encoding="utf-8").strip() if reference.is_file() else None


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The keys whose content is another than it was; one that was not or is not there is no change."""
    return sorted(key for key in before.keys() & now.keys() if before[key] != now[key])
