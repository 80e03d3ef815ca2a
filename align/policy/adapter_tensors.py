"""One adapter's tensors, made from what a file or a checkpoint holds, at alpha = rank whatever alpha that has."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from align.errors import UserError

DOWN, UP, MAGNITUDE, ALPHA = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector", ".alpha"


@dataclass(frozen=True)
class AdapterFile:
    """One adapter."""

    path: Path
    component: str
    """What its pipeline calls the network: unet, transformer."""
    layers: dict[str, tuple[Tensor, Tensor]]
    """{module path: (A (r, in), B (out, r))}, of a convolution with its kernel's sides; the weight grows by B A."""
    magnitudes: dict[str, Tensor]
    """{module path: (out,)}: DoRA's trained norms."""

    @property
    def rank(self) -> int:
        """The largest of its layers'."""
        return max(len(a) for a, _ in self.layers.values())

    @property
    def ranks(self) -> dict[str, int]:
        """{module path: rank} of those that have another than the largest."""
        return {module: len(a) for module, (a, _) in self.layers.items() if len(a) != self.rank}

    def tensors(self) -> dict[str, Tensor]:
        """As PEFT names them inside the network."""
        found = {f"{module}{DOWN}": a for module, (a, _) in self.layers.items()}
        found |= {f"{module}{UP}": b for module, (_, b) in self.layers.items()}
        return found | {f"{module}{MAGNITUDE}": norm for module, norm in self.magnitudes.items()}


def assembled(
    path: Path, component: str, parts: Mapping[tuple[str, str], Tensor], settings: Mapping[str, Any]
) -> AdapterFile:
    """{(module, DOWN | UP | MAGNITUDE | ALPHA): tensor} and PEFT's settings -> the adapter at alpha = rank."""
    layers, magnitudes = {}, {}
    for module in dict.fromkeys(module for module, _ in parts):
        down, up = parts.get((module, DOWN)), parts.get((module, UP))
        if down is None or up is None:
            has, lacks = (UP, DOWN) if down is None else (DOWN, UP)
            has = has if (module, has) in parts else ALPHA if (module, ALPHA) in parts else MAGNITUDE
            raise UserError(
                f"{path}: it has {module}{has} but no {module}{lacks}. The file is damaged; fetch it again."
            )
        rank = len(down)
        if up.ndim != down.ndim or up.shape[1] != rank:
            raise UserError(f"{path}: {module} has A of {tuple(down.shape)} and B of {tuple(up.shape)}: not one rank.")
        if not (down.isfinite().all() and up.isfinite().all()):
            raise UserError(
                f"{path}: {module} holds values that are no numbers: its training had diverged. Give another."
            )
        if (module, ALPHA) in parts:
            alpha = float(parts[module, ALPHA])
        else:
            alpha = _alpha(path, module, settings, rank)
        layers[module] = (down.float(), up.float() * (alpha / (rank**0.5 if settings.get("use_rslora") else rank)))
        if (module, MAGNITUDE) in parts:
            magnitudes[module] = parts[module, MAGNITUDE].float()
    if magnitudes and (bare := layers.keys() - magnitudes.keys()):
        raise UserError(f"{path}: it has DoRA's norms for some layers and none for {sorted(bare)[0]}. Fetch it again.")
    if settings.get("use_dora") and not magnitudes:
        raise UserError(
            f"{path}: it says that it is a DoRA and has no trained norms. The file is damaged; fetch it again."
        )
    return AdapterFile(path, component, layers, magnitudes)


def _alpha(path: Path, module: str, settings: Mapping[str, Any], rank: int) -> float:
    """As PEFT finds it: the first pattern, a module's ending or a regular expression, that matches; then lora_alpha."""
    if not settings:
        return float(rank)
    if not (patterns := settings.get("alpha_pattern") or {}):
        return float(settings.get("lora_alpha", 8))
    from peft.utils.other import get_pattern_key

    try:
        key = get_pattern_key(list(patterns), module)
        return float(patterns.get(key, settings.get("lora_alpha", 8)))  # PEFT's default where nothing is said
    except (re.error, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: its alpha_pattern cannot be used ({error}). Correct its metadata.") from None
