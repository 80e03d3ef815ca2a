"""What a recipe may choose about a frozen network: its attention kernel, and an adapter merged into it beforehand."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from align.errors import UserError
from align.files import weights

Attention = Literal["sdpa", "xformers", "flash"]
PACKAGES = {"xformers": "xformers", "flash": "flash_attn"}

FIRST = ("lora_A.weight", "lora.down.weight", "_lora.down.weight", "lora_linear_layer.down.weight")
"""How the name of a layer's first matrix ends."""


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
    """Adds the adapter's s B A to the pipeline's weights for good, text encoders' too. source: folder, file, Hub id, or
    Hub id:FILE. diffusers reads it, who knows the spellings of few-step adapters; that the file is one and that all of
    it has its place is seen to here."""
    where = f"model.base_adapter={source}"
    if not hasattr(pipeline, "load_lora_weights"):
        raise UserError(f"{where}: diffusers loads no adapters into a {type(pipeline).__name__}. Remove it.")
    path, separator, name = source.partition(":")
    local = Path(path).expanduser()
    place = str(local) if local.exists() else path
    options: dict[str, Any] = {"use_safetensors": True, **({"weight_name": name} if separator else {})}
    for file in _files(local, name):
        try:
            weights.check(file)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    try:
        pipeline.load_lora_weights(place, adapter_name="base", **options)
        found = pipeline.lora_state_dict(place, **options)
        layers = [key for key in (found[0] if isinstance(found, tuple) else found) if key.endswith(FIRST)]
        placed = sum("base" in module.lora_A for module in _layers(pipeline))
        if placed < len(layers):
            raise UserError(
                f"{where}: {len(layers) - placed} of its {len(layers)} layers have no place in this model, so it was "
                "made for another one. Give one for this base model."
            )
        pipeline.fuse_lora(adapter_names=["base"])
        pipeline.unload_lora_weights()
    except UserError:
        raise
    except Exception as error:  # diffusers, peft, safetensors and the HTTP client each raise their own
        raise UserError(f"{where}: it could not be merged: {(str(error) or repr(error)).splitlines()[0]}") from error


def _files(local: Path, name: str) -> list[Path]:
    """Which of the files on this machine may be read."""
    if local.is_file():
        return [local]
    return [local / name] if name and local.is_dir() else sorted(local.glob("*.safetensors"))


def _layers(pipeline: Any) -> Iterator[Any]:
    from peft.tuners.lora import LoraLayer

    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            yield from (module for module in component.modules() if isinstance(module, LoraLayer))
