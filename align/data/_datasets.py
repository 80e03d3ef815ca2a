"""What the `datasets` library reads, brought into the folders that the toolkit trains on.

A Hub id, a dataset that is known by name, or a local one in any format that `datasets` knows (parquet, JSON, CSV,
Arrow, imagefolder, webdataset) becomes a folder: one line a row in a .jsonl, the pictures as the files they were, each
once by its content. It lies under the cache and its name is of all that its content depends on, the Hub's commit first
of all, so that it is brought once. Streaming brings no more than `max_rows` rows; else a split is downloaded whole.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from align.data._columns import IMAGES, Columns, cell, known, needed
from align.data._dataset_config import NATIVE, DatasetConfig, is_hub
from align.data._judged import Pair, Read, judged
from align.data._pictures import Picture
from align.errors import UserError
from align.files import lock
from align.models._identity import digest

COMMIT = re.compile("[0-9a-f]{40}")
DATASETS = Path("~/.cache/diffalign/datasets")
"""Where what is brought goes, unless a source has a cache of its own."""
LEFT_OUT = "left_out.json"
ENDINGS = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp", b"GIF8": ".gif", b"BM": ".bmp"}


def pinned(config: Any) -> Any:
    """The config with the Hub's commit as its revision, where it reads a dataset from there."""
    if not isinstance(config, DatasetConfig) or not config.from_hub() or COMMIT.fullmatch(config.revision or ""):
        return config
    return config.model_copy(update={"revision": _commit(_hub_id(config.named), config.revision)})


def _hub_id(source: str) -> str:
    found = known(source)
    return found.hub if found else source


def _commit(repo: str, revision: str | None) -> str:
    """The commit that a branch or tag is now; of a machine without a network, the one that it had last."""
    from huggingface_hub import HfApi, constants

    try:
        sha = HfApi().dataset_info(repo, revision=revision, timeout=10).sha
        assert sha is not None
        return sha
    except Exception as error:  # the Hub's client and its transport raise many kinds
        last = Path(constants.HF_HUB_CACHE) / f"datasets--{repo.replace('/', '--')}" / "refs" / (revision or "main")
        if last.is_file():
            return last.read_text(encoding="utf-8").strip()
        raise UserError(
            f"data: the dataset {repo} cannot be had from the Hub ({_reason(error)}). Check its name and the network, "
            "log in (`hf auth login`, or HF_TOKEN) if it is gated, or give a folder with a copy."
        ) from None


def check_columns(config: DatasetConfig) -> None:
    """Raises UserError where a local source cannot be read, or has no columns of the names that are asked for."""
    where = f"data.{config.source[0]}={config.named}"
    try:
        row = next(iter(_rows(config.named, config, hub=False)), None)
    except Exception as error:  # of the library and its formats
        raise UserError(f"{where}: `datasets` cannot read it: {_reason(error)}") from None
    if row is not None:
        needed(config.columns or {}, row, where)


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def brought(config: DatasetConfig, cache: Path | None = None) -> Path:
    """The folder with the rows of the source, brought if they are not there yet."""
    kind, source, cache = config.source[1], config.named, cache or DATASETS.expanduser()
    hub, found = is_hub(source), known(source)
    columns: Columns = config.columns or (found.columns if found else {})
    config = pinned(config)
    told = [source if hub else _stamps(Path(source).expanduser()), config.subset, config.split, config.revision]
    name = re.sub(r"[^\w.-]+", "--", _hub_id(source) if hub else Path(source).name)
    folder = cache / f"{name}-{digest([told, kind, dict(columns), config.max_rows])[:12]}"
    if (folder / NATIVE[kind]).is_file():
        return folder
    writing = folder.with_name(f".{folder.name}.writing")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with lock.in_turn(folder.with_name(f".{folder.name}.lock")):
            if not (folder / NATIVE[kind]).is_file():  # else another process was quicker
                _whole(config, writing, folder)
    except OSError as error:
        if (folder / NATIVE[kind]).is_file():  # the disk knows no locks
            return folder
        said = f"{cache}: cannot be written ({_reason(error)}). Set data.cache to a folder with room."
        raise UserError(said) from None
    return folder


def _whole(config: DatasetConfig, writing: Path, folder: Path) -> None:
    """`bring` into `writing`, which becomes `folder` when all of it is there."""
    shutil.rmtree(writing, ignore_errors=True)  # what a crash left
    try:
        writing.mkdir()
        bring(config, writing)
        writing.replace(folder)
    finally:
        shutil.rmtree(writing, ignore_errors=True)


def bring(config: DatasetConfig, folder: Path) -> None:
    """Writes the rows of the source into an empty folder, and the pictures that it holds; OSError is the disk's."""
    (key, kind), source = config.source, config.named
    hub, found = is_hub(source), known(source)
    columns: Columns = config.columns or (found.columns if found else {})
    base = None if hub else Path(source).expanduser()
    (folder / "pictures").mkdir()
    try:
        rows = _rows(source, config, hub=hub)
        left_out = _write(rows, config, columns, kind, folder, base, f"data.{key}={source}")
    except UserError:
        raise
    except Exception as error:  # of the library, its formats and its transport, or of the disk
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"data.{key}={source}: `datasets` cannot read it: {_reason(error)}") from None
    (folder / LEFT_OUT).write_text(json.dumps(left_out), encoding="utf-8")


def _rows(source: str, config: DatasetConfig, *, hub: bool) -> Iterable[Mapping[str, Any]]:
    """The rows, with pictures as {bytes, path}."""
    import datasets

    path = Path(source).expanduser()
    if hub:
        told: Any = {"name": config.subset, "split": config.split, "revision": config.revision}
        found: Any = datasets.load_dataset(_hub_id(source), streaming=config.streaming, **told)
    elif (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        found = datasets.load_from_disk(str(path))
        found = found[config.split] if isinstance(found, datasets.DatasetDict) else found
    elif path.is_file():
        kind = {".jsonl": "json", ".tsv": "csv", ".tar": "webdataset"}.get(path.suffix, path.suffix[1:])
        more: Any = {"sep": "\t"} if path.suffix == ".tsv" else {}
        found = datasets.load_dataset(kind, data_files=str(path), split="train", streaming=True, **more)
    else:
        found = datasets.load_dataset(str(path), split=config.split, streaming=True)
    for name, feature in (found.features or {}).items():
        if isinstance(feature, datasets.Image):
            found = found.cast_column(name, datasets.Image(decode=False))
    return found


def _write(
    rows: Iterable[Mapping[str, Any]],
    config: DatasetConfig,
    columns: Columns,
    kind: str,
    folder: Path,
    base: Path | None,
    where: str,
) -> dict[str, int]:
    """Writes the rows in the toolkit's own form; {why a row is none: how many}."""
    left_out: Counter[str] = Counter()
    own = {ours: ours for ours in columns}

    def read() -> Iterator[Read]:
        for number, row in enumerate(islice(rows, config.max_rows)):
            if number == 0:
                needed(columns, row, where)
            told = {ours: cell(row, theirs) for ours, theirs in columns.items()}
            paths = {ours: _picture(told[ours], folder, base) for ours in IMAGES if ours in told}
            pictures = {ours: None if path is None else Picture(Path(path)) for ours, path in paths.items()}
            yield Read(f"{where}: row {number}", told | paths, pictures)

    with (folder / NATIVE[kind]).open("w", encoding="utf-8") as file:
        for found in judged(read(), own) if kind == "pairs" else (row.cells for row in read()):
            if isinstance(found, Pair):
                line: Any = {"prompt": found.prompt, "winner": str(found.winner), "loser": str(found.loser)}
                line |= {"tie": True} if found.tie else {}
            elif isinstance(found, str) or any(found.get(key) is None for key in ("image", "caption") if key in own):
                left_out[found if isinstance(found, str) else "without a picture or caption"] += 1
                continue
            else:
                line = {"file": found["image"], "caption": found["caption"]} if kind == "captions" else dict(found)
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return dict(left_out)


def left_out(folder: Path) -> dict[str, int]:
    """{why a row is none: how many} of what `brought` has brought."""
    file = folder / LEFT_OUT
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _picture(value: Any, folder: Path, base: Path | None) -> str | None:
    """The path of a picture: of a file that is here where it is, of bytes in `folder`/pictures by their content."""
    data = value.get("bytes") if isinstance(value, Mapping) else value if isinstance(value, bytes) else None
    name = value.get("path") if isinstance(value, Mapping) else value if isinstance(value, str) else None
    if data is None and name and base is not None:
        file = (base if base.is_dir() else base.parent) / name
        return str(file.absolute()) if not Path(name).is_absolute() else name
    if data is None:
        return None
    ending = next((ending for mark, ending in ENDINGS.items() if data.startswith(mark)), ".png")
    file = folder / "pictures" / f"{digest([data.hex()])[:24]}{ending}"
    if not file.is_file():
        file.write_bytes(data)
    return f"pictures/{file.name}"


def _stamps(path: Path) -> list[Any]:
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    return [[str(f.absolute()), f.stat().st_size, f.stat().st_mtime_ns] for f in files]
