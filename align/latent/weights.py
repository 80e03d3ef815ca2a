"""A latent reward on disk, in DiNa-LRM's layout: what is read, the head, and the base's adapter where there is one.

config.json                                       model: backbone_model_id, visual_head_idx, text_head_idx, ...
checkpoint/rm_head.pt or .safetensors             the head
checkpoint/backbone_lora/adapter_config.json      peft's, with use_lora
checkpoint/backbone_lora/adapter_model.safetensors
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from align.latent.head import Head
from rewards._errors import RewardError
from rewards._load import hub_file, load_strictly, read_state

CONFIG, HEADS = "config.json", ("rm_head.safetensors", "rm_head.pt")
LORA = "checkpoint/backbone_lora"


@dataclass(frozen=True)
class Description:
    """What config.json says under "model"."""

    where: str
    """The folder or Hub id."""
    base: str
    image: tuple[int, ...]
    text: tuple[int, ...]
    lora: bool
    head: dict[str, Any]

    @classmethod
    def read(cls, where: str) -> "Description":
        file = find(where, CONFIG)
        try:
            said = yaml.safe_load(file.read_text(encoding="utf-8"))["model"]
            told = said["reward_head"]
            if said.get("use_logistic") or told.get("out_dim", 1) != 1:
                raise RewardError(f"{file}: a head with use_logistic or several outputs is not known here.")
            return cls(
                where,
                str(said["backbone_model_id"]),
                tuple(map(int, said["visual_head_idx"])),
                tuple(map(int, said["text_head_idx"])) if said.get("use_text_features", True) else (),
                bool(said.get("use_lora")) and not said.get("freeze_backbone"),
                {
                    "width": int(told.get("width", -1)),
                    "num_queries": int(told.get("num_queries", 4)),
                    "heads": int(told.get("num_attn_heads", 8)),
                    "projected": bool(told.get("use_proj_in", False)),
                },
            )
        except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, RewardError):
                raise
            raise RewardError(
                f"{file} does not describe a latent reward ({str(error).splitlines()[0]}). Give the folder or Hub id "
                "of one in DiNa-LRM's layout."
            ) from None


def find(where: str, name: str) -> Path:
    """A file of the folder or Hub repository `where`."""
    folder = Path(where).expanduser()
    if folder.is_dir():
        if not (folder / name).is_file():
            raise RewardError(f"reward latent: there is no {name} in {where}. Give a folder in DiNa-LRM's layout.")
        return folder / name
    return hub_file("latent", "model", where, name)


def load_head(head: Head, said: Description) -> None:
    """The head's weights, strictly."""
    here = [name for name in HEADS if (Path(said.where).expanduser() / "checkpoint" / name).is_file()]
    file = find(said.where, f"checkpoint/{here[0] if here else HEADS[-1]}")
    load_strictly(head, read_state(file), file)


@torch.no_grad()
def merge_lora(network: nn.Module, said: Description) -> None:
    """W <- W + (alpha/r) B A for every layer that the adapter has; it must have all that its config names."""
    file = find(said.where, f"{LORA}/adapter_model.safetensors")
    told = json.loads(find(said.where, f"{LORA}/adapter_config.json").read_text(encoding="utf-8"))
    if (
        told.get("use_dora")
        or told.get("bias", "none") != "none"
        or told.get("rank_pattern")
        or told.get("alpha_pattern")
    ):
        raise RewardError(f"{file}: only a plain LoRA of one rank is known here.")
    scale = told["lora_alpha"] / (told["r"] ** 0.5 if told.get("use_rslora") else told["r"])
    state = {key.removeprefix("base_model.model."): value for key, value in read_state(file).items()}
    targets, out = tuple(told["target_modules"]), tuple(told.get("exclude_modules") or ())
    layers = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and _named(name, targets) and not _named(name, out)
    }
    wanted = {f"{name}.lora_{side}.weight" for name in layers for side in "AB"}
    for what, keys in (("lacks", wanted - state.keys()), ("has no place for", state.keys() - wanted)):
        if keys:
            raise RewardError(
                f"{file} is the adapter of another network than {said.base}: it {what} {', '.join(sorted(keys)[:3])}."
            )
    for name, layer in layers.items():
        layer.weight += (scale * _product(state, name, file, layer)).to(layer.weight)


def _named(name: str, targets: tuple[str, ...]) -> bool:
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _product(state: Mapping[str, Tensor], name: str, file: Path, layer: nn.Linear) -> Tensor:
    down, up = (state[f"{name}.lora_{side}.weight"] for side in "AB")
    if (up.shape[0], down.shape[1]) != tuple(layer.weight.shape) or up.shape[1] != down.shape[0]:
        raise RewardError(
            f"{file}: {name} has {tuple(up.shape)} and {tuple(down.shape)}, the layer {tuple(layer.weight.shape)}. It "
            "is the adapter of another network."
        )
    return up @ down
