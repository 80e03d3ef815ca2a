"""The network of a checkpoint, taken from elsewhere: distilled and fine-tuned networks are often published alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from align.errors import UserError


def is_file(source: str) -> bool:
    """Whether `source` is one file of weights: a path, or `owner/name:file` on the Hub."""
    return ":" in source or Path(source).expanduser().is_file()


def dtype_keyword() -> str:
    """diffusers 0.4x renamed torch_dtype to dtype and warns of the old name; older ones ignore the new one."""
    from diffusers.utils import deprecation_utils

    return "dtype" if hasattr(deprecation_utils, "_resolve_dtype") else "torch_dtype"


def load_network(source: str, class_name: str, part: str, dtype: torch.dtype) -> Any:
    """The network in the folder or Hub repository `source`, or in its subfolder `part` (unet, transformer).

    Without safetensors, the tensors of a pickle are read by torch's weights_only, which runs none of its code.
    """
    import diffusers

    place = str(path) if (path := Path(source).expanduser()).exists() else source
    network_class = getattr(diffusers, class_name)
    try:
        network_class.load_config(place, subfolder=part)
    except OSError:
        part = ""
    return _trying(
        source, lambda: network_class.from_pretrained(place, subfolder=part or None, **{dtype_keyword(): dtype})
    )


def load_weights(network: Any, source: str) -> None:
    """Puts the weights of one .safetensors file, named as diffusers names them, into `network`."""
    from huggingface_hub import hf_hub_download
    from safetensors.torch import load_file

    if not source.endswith(".safetensors"):
        raise UserError(f"model.network={source}: of single files only .safetensors are read. Convert it first.")
    path = Path(source).expanduser()
    found = path if path.is_file() else _trying(source, lambda: hf_hub_download(*source.split(":", 1)))
    _trying(source, lambda: network.load_state_dict(load_file(found)))


def _trying(source: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as error:  # diffusers, safetensors, torch and the HTTP client each raise their own
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"model.network={source}: it could not be loaded: {first_line}") from error
