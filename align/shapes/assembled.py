"""Checkpoints that ship as a LoRA on another one: merged once, kept in the cache, and then a stock folder as any other.

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
NETWORK = Path("unet", "diffusion_pytorch_model.safetensors")


def assemble(folder: Path) -> Path:
    """The folder of the merged pipeline of `folder`, which holds a LoRA, what it is for, and the parts of its own.

    Raises:
        UserError: the cache cannot be written.
    """
    base = folder.parent / json.loads((folder / BASE).read_text(encoding="utf-8"))["base"]
    digest = hashlib.sha256()
    for file in (folder / ADAPTER, base / NETWORK):
        digest.update(file.read_bytes())
    to = cache.folder("embedded") / f"{folder.name}-{digest.hexdigest()[:16]}"
    if to.is_dir():
        return to
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=to.parent, prefix=f".{folder.name}-") as temporary:
            made = Path(temporary) / "made"
            shutil.copytree(base, made)
            for part in (p for p in folder.iterdir() if p.is_dir()):
                shutil.copytree(part, made / part.name, dirs_exist_ok=True)
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
