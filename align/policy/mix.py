"""Several adapters side by side on one network, each at a weight of its own.

    W = W0 + sum_i w_i s_i B_i A_i,   s_i = alpha_i / r_i

A weight of 0 leaves an adapter out; with all of them 0 the network is the base, bit for bit. The sum is linear in what
the adapters add to the weights, not in what they make of the images: that is what a sweep is for.
"""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from align.errors import UserError
from align.files.near import near
from align.policy import adapter_file, lora


class Located(NamedTuple):
    """Where an adapter lies: its file, folder or Hub id, and the recipe it was trained by, if that is beside it."""

    adapter: str
    recipe: Path | None
    name: str
    """What it is called in tables."""


def locate(source: str) -> Located:
    """The adapter that a user means by a run's folder, an adapter's folder or file, or a Hub id."""
    path = Path(source).expanduser()
    if path.exists() or not adapter_file.is_hub_id(source):
        file, recipe = adapter_file.locate(path)
        named = file.name in (adapter_file.FILE_NAME, adapter_file.STATE)
        return Located(str(file), recipe, _name(file.parent) if named else file.stem)
    if path.parent.is_dir():  # runs/typo, where there is a folder runs
        raise UserError(
            f"{source}: there is no such folder in {path.parent}.{near(path)} Give the folder of a finished run, or of "
            "an adapter."
        )
    return Located(source, None, source)


def _name(folder: Path) -> str:
    """runs/draft-shapes/adapter is called draft-shapes, a checkpoint of it draft-shapes step-000050."""
    folder = folder.resolve()
    if folder.parent.name in adapter_file.STEPS:
        return f"{folder.parent.parent.name} {folder.name}"
    return folder.parent.name if folder.name == adapter_file.FOLDER else folder.name


class Mixer:
    """Adds adapters to `network` and sets their weights; `component` is the pipeline's name for it."""

    def __init__(self, network: nn.Module, component: str):
        self.network, self.component = network, component
        self._layers: list[Any] = []
        self._names: dict[str, str] = {}  # source -> its name inside PEFT's layers
        self._weights: dict[str, float] = {}

    def add(self, source: str) -> None:
        """Loads the adapter of `source` (a file, folder or Hub id in diffusers' format), of any rank and targets."""
        name = self._names.setdefault(source, f"adapter{len(self._names)}")
        layers = attach(self.network, self.component, source, name)
        known = {id(layer) for layer in self._layers}
        self._layers += [layer for layer in layers if id(layer) not in known]
        self.set({})

    def set(self, weights: Mapping[str, float]) -> None:
        """{source: weight} -> from now on the network is W0 plus these; adapters that are not named are off."""
        self._weights = dict(weights)
        active = {self._names[source]: weight for source, weight in weights.items() if weight != 0}
        for layer in self._layers:
            layer.enable_adapters(bool(active))
            if active:
                layer.set_adapter(list(active))
            for name in active.keys() & layer.scaling.keys():
                layer.set_scale(name, active[name])
        self.network.requires_grad_(False)  # PEFT's switches ask for gradients

    @contextmanager
    def entered(self, weights: Mapping[str, float]) -> Iterator[None]:
        """Inside, the network is W0 plus these; then again what it was."""
        before = self._weights
        self.set(weights)
        try:
            yield
        finally:
            self.set(before)

    def merge(self) -> None:
        """Adds what is set to the weights for good, and takes PEFT's layers out."""
        lora.merge(self.network, self._layers)


@torch.no_grad()
def attach(network: nn.Module, component: str, source: str, name: str) -> list[Any]:
    """Puts the adapter of `source`, of any rank and targets, on the network as `name`, without gradient; its PEFT
    layers. Adapters that are there already keep their gradients."""
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
    from peft.tuners.lora import LoraLayer

    file = adapter_file.read(adapter_file.find(source), component)
    settings = LoraConfig(
        r=file.rank,
        lora_alpha=file.rank,
        target_modules=sorted(file.layers),
        rank_pattern=whole_names(file.ranks),
        alpha_pattern=whole_names(file.ranks),
        use_dora=bool(file.magnitudes),
    )
    required = [(p, p.requires_grad) for p in network.parameters()]
    on = [(m, list(m.active_adapters)) for m in network.modules() if isinstance(m, LoraLayer)]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # a second adapter is meant here
            inject_adapter_in_model(settings, network, name)
        result = set_peft_model_state_dict(network, file.tensors(), adapter_name=name)  # type: ignore[arg-type]
    except (ValueError, RuntimeError) as error:  # no such layers; layers of other shapes
        lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = next((line for line in lines if not line.endswith(":")), lines[0]).rstrip(".")  # not what heads a list
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


def whole_names(ranks: Mapping[str, int]) -> dict[str, int]:
    """Patterns for PEFT that match these modules and no other that ends alike."""
    return {f"^{re.escape(module)}": rank for module, rank in ranks.items()}
