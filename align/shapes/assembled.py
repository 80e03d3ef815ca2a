"""Checkpoints that ship in parts, so that nothing ships twice: as a LoRA on another one, or without the weights that
lie beside them already. Put together once, kept in the cache, and then a stock folder as any other.

W' = W + B A of every layer (Hu et al. 2021, arXiv 2106.09685), in float32, kept in the base's dtype.
"""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from align.errors import UserError
from align.files import cache

ADAPTER = "pytorch_lora_weights.safetensors"
BASE = "adapter_of.json"  # {"base": NAME}: the checkpoint beside it that the LoRA is for
SHARED = "shared.json"  # {file: FOLDER/FILE beside it that is the same}
FIRST = "shapes-sd"  # the base of most: what it has stays with it
NETWORK = Path("unet", "diffusion_pytorch_model.safetensors")


def in_parts(folder: Path) -> bool:
    """Whether it has to be put together."""
    return any((folder / name).is_file() for name in (BASE, SHARED))


def assemble(folder: Path) -> Path:
    """The folder of the whole pipeline of `folder`, which holds the parts of its own, and a LoRA and what it is for, or
    what it shares.

    Raises:
        UserError: the cache cannot be written.
    """
    base = folder.parent / _said(folder / BASE)["base"] if (folder / BASE).is_file() else None
    shared = {to: folder.parent / file for to, file in _said(folder / SHARED).items()}
    digest = hashlib.sha256()
    for place in (folder, *([base] if base else ())):
        for file in sorted(path for path in place.rglob("*") if path.is_file()):
            digest.update(file.read_bytes())
    for file in shared.values():
        digest.update(file.read_bytes())
    to = cache.folder("embedded") / f"{folder.name}-{digest.hexdigest()[:16]}"
    if to.is_dir():
        return to
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=to.parent, prefix=f".{folder.name}-") as temporary:
            made = Path(temporary) / "made"
            if base is not None:
                shutil.copytree(base, made)
            shutil.copytree(folder, made, dirs_exist_ok=True, ignore=shutil.ignore_patterns(BASE, SHARED, ADAPTER))
            for name, file in shared.items():
                shutil.copyfile(file, made / name)
            if base is not None:
                merge(made / NETWORK, folder / ADAPTER)
            try:
                os.rename(made, to)
            except OSError:  # another process was first
                if not to.is_dir():
                    raise
    except OSError as error:
        raise UserError(
            f"{cache.folder('embedded')}: cannot be written ({error.strerror or error}), and {folder.name} is put "
            f"together there. Set {cache.VARIABLE} to a folder with room."
        ) from None
    return to


def share(checkpoints: Path) -> None:
    """Takes away the weights of checkpoints that an earlier one, by its name, or an earlier part of it holds too, and
    says in SHARED where they are."""
    seen: dict[str, Path] = {}
    for folder in sorted((p for p in checkpoints.iterdir() if p.is_dir()), key=lambda p: (p.name != FIRST, p.name)):
        shared = _said(folder / SHARED)
        for file in sorted(folder.rglob("*.safetensors")):
            first = seen.setdefault(hashlib.sha256(file.read_bytes()).hexdigest(), file)
            if first != file:
                shared[file.relative_to(folder).as_posix()] = first.relative_to(checkpoints).as_posix()
                file.unlink()
        if shared:
            (folder / SHARED).write_text(json.dumps(shared, indent=1) + "\n", encoding="utf-8")


def _said(file: Path) -> dict[str, str]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def merge(network: Path, adapter: Path) -> None:
    """Adds the LoRA's products, scale 1, to the network's file in place."""
    from safetensors.torch import load_file, save_file

    weights, lora = load_file(network), load_file(adapter)
    for key, down in lora.items():
        if not key.endswith(".lora_A.weight"):
            continue
        up = lora[key.replace("lora_A", "lora_B")].float()
        name = key.removeprefix("unet.").replace("lora_A.", "")
        change = (up.flatten(1) @ down.float().flatten(1)).view_as(weights[name])
        weights[name] = (weights[name].float() + change).to(weights[name].dtype)
    save_file(weights, network, metadata={"format": "pt"})
