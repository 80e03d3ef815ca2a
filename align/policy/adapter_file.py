"""An adapter on disk: where a run, a folder or a file has it, and what its tensors are at alpha = rank."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from align.errors import UserError
from align.policy.lora import FILE_NAME, METADATA_KEY, AdapterConfig, ordered

RECIPE, FOLDER = "recipe.yaml", "adapter"  # in a run's folder, and in that of a pulled adapter
DOWN, UP, MAGNITUDE, ALPHA = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector", ".alpha"


@dataclass(frozen=True)
class AdapterFile:
    """One adapter in diffusers' format."""

    path: Path
    component: str
    """What its pipeline calls the network: unet, transformer."""
    layers: dict[str, tuple[Tensor, Tensor]]
    """{module path: (A (r, in), B (out, r))}; the module's weight grows by B A."""
    magnitudes: dict[str, Tensor]
    """{module path: (out,)}: DoRA's trained norms."""

    @property
    def rank(self) -> int:
        """The largest of its layers'."""
        return max(len(a) for a, _ in self.layers.values())

    def config(self) -> AdapterConfig:
        """What injects this very adapter into a network that has its modules."""
        return AdapterConfig(
            rank=self.rank, targets=sorted(self.layers), dora=bool(self.magnitudes), init=str(self.path)
        )


def locate(source: Path) -> tuple[Path, Path | None]:
    """(the adapter's file, the recipe beside it if there is one) of a run, an adapter's folder, or the file itself."""
    source = source.expanduser()
    tried = [source] if source.is_file() else [source / FOLDER / FILE_NAME, source / FILE_NAME]
    for path in tried:
        if path.is_file():
            beside = [folder / RECIPE for folder in (path.parent, path.parent.parent)]
            return path, next((recipe for recipe in beside if recipe.is_file()), None)
    why = "it is no folder" if not source.is_dir() else f"neither it nor its folder {FOLDER} holds {FILE_NAME}"
    raise UserError(f"{source}: there is no adapter: {why}. Give the folder of a finished run, or of an adapter.")


def read(path: Path) -> AdapterFile:
    """The adapter in a .safetensors file of diffusers' format, at alpha = rank whatever alpha the file has."""
    try:
        with safe_open(path, framework="pt") as file:
            said = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # safe_open is no mapping
    except SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file that is whole ({error}). Make it again.") from None
    downs = [name.removesuffix(DOWN) for name in tensors if name.endswith(DOWN)]
    components = {name.partition(".")[0] for name in downs}
    expected = {f"{n}{end}" for n in downs for end in (DOWN, UP)}
    if len(components) != 1 or not expected <= tensors.keys():
        raise UserError(
            f"{path}: its tensors are not those of one network's adapter in diffusers' format "
            f"(unet.*{DOWN} or transformer.*{DOWN}, each with its {UP}). Convert it with diffusers' load_lora_weights "
            "and save_lora_weights."
        )
    (component,) = components
    layers, magnitudes = {}, {}
    for name in downs:
        a, b = tensors[f"{name}{DOWN}"].float(), tensors[f"{name}{UP}"].float()
        patterns = said.get(f"{component}.alpha_pattern") or {}
        otherwise = patterns.get(name.removeprefix(f"{component}."), said.get(f"{component}.lora_alpha", len(a)))
        alpha = float(tensors.get(f"{name}{ALPHA}", otherwise))
        scale = alpha / (len(a) ** 0.5 if said.get(f"{component}.use_rslora") else len(a))
        module = name.removeprefix(f"{component}.")
        layers[module] = (a, b * scale)
        if (magnitude := f"{name}{MAGNITUDE}") in tensors:
            magnitudes[module] = tensors[magnitude].float()
    return AdapterFile(path, component, layers, magnitudes)


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Path:
    """Writes tensors as a .safetensors file that appears whole or not at all; equal tensors are equal files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    data = serialise({name: torch.clone(t).contiguous() for name, t in tensors.items()}, {"format": "pt", **metadata})
    temporary.write_bytes(ordered(data))
    os.replace(temporary, path)
    return path
