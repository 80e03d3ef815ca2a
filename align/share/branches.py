"""Guidance whose branches have adapters of their own, on a stock pipeline: for a card, and for `Run.pipeline`.

A stock pipeline makes one call of the network for both branches, the unprompted rows first. Each half is run by itself,
with its own adapters set: the same rows, two calls.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.config import Recipe
from align.models._pipeline import PipelineModel
from align.policy import adapter_file
from align.policy.branches import MAIN, NEGATIVE
from align.registry import model_family

OWN = "align"
"""What the run's own adapter is called on a stock pipeline."""


@dataclass(frozen=True)
class Branches:
    """The weights of each branch's adapters, unprompted and prompted; where the one lies that is not the run's own."""

    network: str
    unprompted: Mapping[str, float]
    prompted: Mapping[str, float]
    source: str | None

    def lines(self) -> list[str]:
        """Those behind the run's own adapter."""
        lines = ["import torch", "from torch.utils._pytree import tree_map", ""]
        if self.source is not None:
            hub = adapter_file.is_hub_id(self.source) and not Path(self.source).exists()
            place = json.dumps(self.source) if hub else '"FOLDER_OF_THE_NEGATIVE_ADAPTER"'
            lines.insert(2, f'pipeline.load_lora_weights({place}, adapter_name="{NEGATIVE}")')
        weights = ", ".join(json.dumps(dict(w)) for w in (self.unprompted, self.prompted))
        return [
            *lines,
            f"forward, branches = pipeline.{self.network}.forward, [{weights}]  # unprompted, prompted",
            "",
            "",
            "def apart(*args, **kwargs):",
            "    halves = []",
            "    for i, weights in enumerate(branches):",
            "        pipeline.set_adapters(list(weights), list(weights.values()))",
            '        half = lambda x, i=i: x.chunk(2)[i] if getattr(x, "ndim", 0) else x',
            "        halves.append(forward(*tree_map(half, args), **tree_map(half, kwargs))[0])",
            "    return (torch.cat(halves),)",
            "",
            "",
            f"pipeline.{self.network}.forward = apart",
        ]

    def put_on(self, pipeline: Any) -> None:
        """What the lines do, on a pipeline that has the run's own adapter."""
        import torch
        from torch.utils._pytree import tree_map

        network = getattr(pipeline, self.network)
        if self.source is not None:
            file = adapter_file.find(self.source)
            told = {"prefix": self.network, "adapter_name": NEGATIVE, "weight_name": file.name}
            network.load_lora_adapter(str(file.parent), **told)
        forward = network.forward

        def apart(*args: Any, **kwargs: Any) -> tuple[Any]:
            halves = []
            for i, weights in enumerate((self.unprompted, self.prompted)):
                pipeline.set_adapters(list(weights), list(weights.values()))
                given, named = tree_map(lambda x, i=i: x.chunk(2)[i] if getattr(x, "ndim", 0) else x, (args, kwargs))
                halves.append(forward(*given, **named)[0])
            return (torch.cat(halves),)

        network.forward = apart


def possible(recipe: Recipe) -> bool:
    """Whether a stock pipeline of the recipe's model can do it: one that guides by one call and loads adapters."""
    family = model_family(recipe.model)
    loads = getattr(family, "load_adapter", PipelineModel.load_adapter) is PipelineModel.load_adapter
    return loads and getattr(family, "guides_in_one_call", False)


def put_on(pipeline: Any, recipe: Recipe, strength: float) -> Any:
    """`pipeline`, which has the run's own adapter at `strength`, with the branches of the recipe's guidance."""
    if (split := branches(recipe, strength)) is not None:
        split.put_on(pipeline)
    return pipeline


def branches(recipe: Recipe, strength: float) -> Branches | None:
    """Of a recipe as its scores are made, its own adapter at `strength`; None where guidance has one network, or a
    stock pipeline cannot do it."""
    sampling = (recipe.evaluate.sampling if recipe.evaluate else None) or recipe.sampling
    negative = sampling.how.negative
    if negative is None or not possible(recipe):
        return None
    network, wanted = model_family(recipe.model).network_name, negative.adapters
    if getattr(recipe.objective, "train", "") == NEGATIVE:
        return Branches(network, {OWN: strength * wanted.get(NEGATIVE, 0.0)}, {OWN: 0.0}, None)
    unprompted, prompted = {OWN: strength * wanted.get(MAIN, 0.0)}, {OWN: strength}
    if negative.source is None:
        return Branches(network, unprompted, prompted, None)
    unprompted[NEGATIVE], prompted[NEGATIVE] = wanted.get(NEGATIVE, 0.0), 0.0
    return Branches(network, unprompted, prompted, negative.source)
