"""An adapter file put on a network that diffusers has no LoRA loader for."""

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn

FILE_NAME = "pytorch_lora_weights.safetensors"
METADATA_KEY = "lora_adapter_metadata"


def attach(network: nn.Module, path: Path, *, component: str, strength: float) -> None:
    """Injects what the file in the folder `path` holds for `component` into `network`, at `strength`."""
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
    from peft.tuners.lora import LoraLayer

    with safe_open(path / FILE_NAME, framework="pt") as file:
        said: dict[str, Any] = json.loads(file.metadata()[METADATA_KEY])
        tensors = {name.removeprefix(f"{component}."): file.get_tensor(name) for name in file.keys()}
    settings = {name.removeprefix(f"{component}."): value for name, value in said.items()}
    inject_adapter_in_model(LoraConfig(**settings), network, "align")
    set_peft_model_state_dict(network, tensors, adapter_name="align")  # type: ignore[arg-type]
    for layer in network.modules():
        if isinstance(layer, LoraLayer):
            layer.set_scale("align", strength)
            layer.enable_adapters(strength != 0)
