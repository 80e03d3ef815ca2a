"""sampling.guidance.dynamic: each step's scale chosen by rewards on what the image would become."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any
from weakref import WeakKeyDictionary

from pydantic import Field

from align.registry import REWARDS, ComponentConfig, LabelledRewards, build

if TYPE_CHECKING:
    from torch import Tensor

    from align.models._base import DiffusionModel

_BUILT: "WeakKeyDictionary[Any, dict[str, Any]]" = WeakKeyDictionary()
"""The rewards of a model's guidance, each block's loaded once."""


class DynamicConfig(ComponentConfig):
    """A search over scales at every step, image by image (samplers/dynamic.py has the paper)."""

    scales: tuple[Annotated[float, Field(ge=0)], ...] = Field(default=(1.0, 3.0, 7.5, 11.0, 15.0), min_length=1)
    """What is tried; the network is not asked again for it, decoder and rewards are, once for each."""
    rewards: LabelledRewards = Field(min_length=1)
    """{label: reward} that judge the images the step predicts. They are then no judges of the result."""
    every: int = Field(default=1, ge=1)
    """Choose at each so many-th guided step, and keep the scale between."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        if len(set(self.scales)) < len(self.scales):
            yield ".scales", f"are {list(self.scales)}. Give each once."

    def judge(self, model: "DiffusionModel", prompts: Sequence[str]) -> "Callable[[Tensor], Tensor]":
        """Latents x0_hat (B, C, h, w) of these prompts -> scores (E, B)."""
        import torch

        from align.models._base import device_of
        from rewards import Composite
        from rewards._latents import Undecoded

        built, key = _BUILT.setdefault(model, {}), self.model_dump_json()
        if key not in built:
            device = device_of(model.network)
            built[key] = Composite({name: build(REWARDS, one) for name, one in self.rewards.items()}).to(device)

        def scores(x0_hat: "Tensor") -> "Tensor":
            with torch.no_grad():
                terms = built[key](Undecoded(x0_hat, model.codec), prompts)
            return torch.stack([terms[name].double() for name in self.rewards])

        return scores

    def described(self) -> str:
        """For people: "chosen of 1, 3, 7.5 by clip"."""
        return f"chosen of {', '.join(f'{w:g}' for w in self.scales)} by {' and '.join(self.rewards)}"
