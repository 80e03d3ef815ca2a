"""The adapter inside a run's checkpoint: what the run hands over, or its moving average where the run keeps one."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from align.errors import UserError
from align.policy.adapter_tensors import DOWN, MAGNITUDE, UP, AdapterFile, assembled

ENDS = {"A.weight": DOWN, "B.weight": UP, "magnitude_vector.weight": MAGNITUDE}


def read_state(path: Path, component: str | None) -> AdapterFile:
    """Of the checkpoint that holds `path`; scale and network's name come from its meta.json."""
    folder = path.parent
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        recipe: dict[str, Any] = meta["recipe"]
        name = recipe["objective"].get("train", "default")  # a run that trains a negative, and nothing beside
        result = meta.get("result") or {"part": "trainable", "name": name, "adapter": recipe["adapter"]}
        tensors = load_file(folder / f"{result['part']}.safetensors")
        average = folder / "ema.safetensors"
        if average.is_file():
            shadow = load_file(average)
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            names = [f"/{name}" for name, _ in state[result["part"]]["$dict"]]
            tensors = {name: shadow[f"/shadow/{place}"] for place, name in enumerate(names)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise UserError(f"{folder}: the checkpoint is damaged ({error}). Give another.") from None
    parts = {}
    for name, value in tensors.items():
        module, sign, rest = name.removeprefix("/").partition(".lora_")
        end = ENDS.get(rest.replace(f".{result['name']}.", ".", 1))
        if not sign or end is None:
            raise UserError(
                f"{folder}: what this run trained is no adapter of the network ({name}). Give another run's."
            )
        parts[module, end] = value
    adapter = result["adapter"]
    alpha = adapter["rank"] if adapter.get("alpha") is None else adapter["alpha"]
    return assembled(path, component or _network(recipe), parts, {"lora_alpha": alpha, "use_rslora": adapter["rslora"]})


def _network(recipe: dict[str, Any]) -> str:
    from align.registry import MODELS, model_family

    return getattr(model_family(MODELS.look_up(recipe["model"])), "network_name", "unet")
