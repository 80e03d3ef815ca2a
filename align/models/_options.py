"""What a recipe may choose about a frozen network: its attention kernel, and an adapter merged into it beforehand."""

import importlib.util
from pathlib import Path
from typing import Any, Literal

import torch

from align.errors import UserError

Attention = Literal["sdpa", "xformers", "flash"]
PACKAGES = {"xformers": "xformers", "flash": "flash_attn"}


def missing_package(attention: str) -> str | None:
    """What stands in the way of this kernel on this machine, as far as packages go."""
    package = PACKAGES.get(attention)
    if package is None or importlib.util.find_spec(package) is not None:
        return None
    return (
        f"{attention} needs the package {package.replace('_', '-')}, which is not installed. Install it, or use sdpa."
    )


def set_attention(network: Any, attention: str) -> None:
    """Switches every attention layer of a diffusers network to the kernel."""
    if attention == "sdpa":
        return
    if not torch.cuda.is_available():
        raise UserError(f"model.attention={attention}: its kernels need a CUDA device, and there is none. Use sdpa.")
    if any(hasattr(getattr(module, "processor", None), "_attention_backend") for module in network.modules()):
        network.set_attention_backend(attention)
    elif attention == "xformers":
        network.enable_xformers_memory_efficient_attention()
    else:
        raise UserError(
            f"model.attention={attention}: {type(network).__name__} of diffusers has sdpa and xformers only. Use sdpa, "
            "which takes a flash kernel of torch's own where there is one."
        )


def merge_adapter(pipeline: Any, source: str) -> None:
    """Adds the adapter's s B A to the pipeline's weights for good. source: folder, file, Hub id, or Hub id:FILE."""
    where = f"model.base_adapter={source}"
    if not hasattr(pipeline, "load_lora_weights"):
        raise UserError(f"{where}: diffusers loads no adapters into a {type(pipeline).__name__}. Remove it.")
    path, separator, name = source.partition(":")
    place = str(Path(path).expanduser()) if Path(path).expanduser().exists() else path
    try:
        pipeline.load_lora_weights(place, adapter_name="base", **({"weight_name": name} if separator else {}))
        pipeline.fuse_lora(adapter_names=["base"])
        pipeline.unload_lora_weights()
    except Exception as error:  # diffusers, peft, safetensors and the HTTP client each raise their own
        raise UserError(f"{where}: it could not be merged: {(str(error) or repr(error)).splitlines()[0]}") from error
