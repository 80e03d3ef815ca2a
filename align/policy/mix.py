"""Several adapters side by side on one network, each at a weight of its own.

    W = W0 + sum_i w_i s_i B_i A_i,   s_i = alpha_i / r_i

A weight of 0 leaves an adapter out; with all of them 0 the network is the base, bit for bit. The sum is linear in what
the adapters add to the weights, not in what they make of the images: that is what a sweep is for.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from align.errors import UserError
from align.policy import adapter_file, lora


class Located(NamedTuple):
    """Where an adapter lies: its file, folder or Hub id, and the recipe it was trained by, if that is beside it."""

    adapter: str
    recipe: Path | None
    name: str
    """What it is called in tables."""


def locate(source: str) -> Located:
    """The adapter that a user means by a run's folder, an adapter's folder or file, or a Hub id."""
    if Path(source).expanduser().exists() or not lora.is_hub_id(source):
        file, recipe = adapter_file.locate(Path(source))
        return Located(str(file), recipe, _name(file.parent) if file.name == lora.FILE_NAME else file.stem)
    return Located(source, None, source)


def _name(folder: Path) -> str:
    """runs/draft-shapes/adapter is called draft-shapes."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "adapter" else folder.name


class Mixer:
    """Adds adapters to `network` and sets their weights; `component` is the pipeline's name for it."""

    def __init__(self, network: nn.Module, component: str):
        self.network, self.component = network, component
        self._layers: list[Any] = []
        self._names: dict[str, str] = {}  # source -> its name inside PEFT's layers

    def add(self, source: str) -> None:
        """Loads the adapter of `source` (a file, folder or Hub id in diffusers' format), of any rank and targets."""
        name = self._names.setdefault(source, f"adapter{len(self._names)}")
        layers = attach(self.network, self.component, source, name)
        known = {id(layer) for layer in self._layers}
        self._layers += [layer for layer in layers if id(layer) not in known]
        self.set({})

    def set(self, weights: Mapping[str, float]) -> None:
        """{source: weight} -> from now on the network is W0 plus these; adapters that are not named are off."""
        active = {self._names[source]: weight for source, weight in weights.items() if weight != 0}
        for layer in self._layers:
            layer.enable_adapters(bool(active))
            if active:
                layer.set_adapter(list(active))
            for name in active.keys() & layer.scaling.keys():
                layer.set_scale(name, active[name])
        self.network.requires_grad_(False)  # PEFT's switches ask for gradients


@torch.no_grad()
def attach(network: nn.Module, component: str, source: str, name: str) -> list[Any]:
    """Puts the adapter of `source`, of any rank and targets, on the network as `name`, without gradient; its PEFT
    layers. Adapters that are there already keep their gradients."""
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
    from peft.tuners.lora import LoraLayer

    try:
        tensors, said = lora.read(source, component)
    except UserError as error:
        raise UserError(str(error).removeprefix("adapter.init=")) from None
    tensors, ranks = _unscaled(source, tensors, said)
    rank = max(ranks.values())
    other = {layer: r for layer, r in ranks.items() if r != rank}
    settings = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=sorted(ranks),
        rank_pattern=other,
        alpha_pattern=dict(other),
        use_dora=any("lora_magnitude_vector" in key for key in tensors),
    )
    required = [(p, p.requires_grad) for p in network.parameters()]
    on = [(m, list(m.active_adapters)) for m in network.modules() if isinstance(m, LoraLayer)]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # a second adapter is meant here
            inject_adapter_in_model(settings, network, name)
        result = set_peft_model_state_dict(network, tensors, adapter_name=name)  # type: ignore[arg-type]
    except (ValueError, RuntimeError) as error:  # no such layers; layers of other shapes
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{source}: does not fit this model ({reason}). Give one trained on it.") from None
    if result.unexpected_keys:
        raise UserError(f"{source}: this model has no layer for {result.unexpected_keys[0]}. Give one trained on it.")
    for layer, names in on:
        layer.set_adapter(names)
    for parameter, value in required:
        parameter.requires_grad_(value)
    for parameter in lora.parameters(network, name):
        parameter.requires_grad_(False)
        parameter.data = parameter.data.float()  # as in training, whatever the network computes in
    return [m for m in network.modules() if isinstance(m, LoraLayer) and name in m.scaling]


def _unscaled(
    source: str, tensors: Mapping[str, Tensor], said: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """(the tensors with each layer's scale folded into B, {layer: rank})."""
    down, up = ".lora_A.weight", ".lora_B.weight"
    alphas = {name.removesuffix(".alpha"): float(value) for name, value in tensors.items() if name.endswith(".alpha")}
    patterns = said.get("alpha_pattern") or {}
    found = {name: value for name, value in tensors.items() if not name.endswith(".alpha")}
    ranks = {name.removesuffix(down): len(value) for name, value in found.items() if name.endswith(down)}
    for layer, rank in ranks.items():
        if layer + up not in found:
            raise UserError(f"{source}: it has {layer}{down} but no {layer}{up}. The file is damaged; fetch it again.")
        alpha = float(alphas.get(layer) or patterns.get(layer) or said.get("lora_alpha") or rank)
        scale = alpha / (rank**0.5 if said.get("use_rslora") else rank)
        found[layer + up] = found[layer + up] * scale
    if not ranks:
        raise UserError(f"{source}: there is no lora_A weight in it. It must be in diffusers' format.")
    return found, ranks
