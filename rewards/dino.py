"""DINO identity: how alike an image and a reference image are in what they show.

    r = u . v,   u and v the unit CLS states of image and reference

DINOv2: Oquab et al. 2023, arXiv:2304.07193; with DINO (facebook/dino-vits16) it is the subject fidelity of DreamBooth
(Ruiz et al. 2022, arXiv:2208.12242). Unlike LPIPS it does not ask for the same place.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rewards._base import Reward
from rewards._card import Card
from rewards._clip import single
from rewards._config import RewardConfig
from rewards._load import hf_preprocess, load_hf
from rewards._reference import References, missing
from rewards._text import PromptCache


class DinoConfig(RewardConfig):
    name: Literal["dino"] = "dino"
    reference: str | dict[str, str]
    """An image file, or {prompt: image file}."""
    model: str = "facebook/dinov2-base"
    """A folder or Hub id of a DINO or DINOv2 in HF's format."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the network; norm and cosine are always computed in float32."""

    card = Card(
        measures="How alike an image and a reference image are in what they show.",
        range="[-1, 1]; 1 is the reference",
        size="87 M (DINOv2 base)",
        hacking="A copy of the reference's subject, whatever the prompt asks.",
        partner="clip",
    )

    def licences(self) -> dict[str, str]:
        return self._of_checkpoint(self.model)

    def unreadable(self, prompts: Iterable[str]) -> Iterator[str]:
        return missing("dino", self.reference, prompts)


class Dino(Reward):
    """Cosine of CLS states; higher is more alike. Prompts only choose the reference."""

    Config = DinoConfig

    def __init__(self, config: DinoConfig):
        super().__init__(config)
        from transformers import AutoModel

        self.references = References("dino", config.reference)
        self.dtype = getattr(torch, config.dtype)
        self.network = load_hf(AutoModel, config.model, unused=("pooler.",)).to(self.dtype)
        self.preprocess = hf_preprocess(config.model)
        self._cache = PromptCache(lambda key, device: self._embed(self.references.image(key, None, device))[0])

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        references = self._cache([self.references.key(prompt) for prompt in prompts], images.device)
        return (self._embed(images) * references).sum(-1)

    def _embed(self, images: Tensor) -> Tensor:
        states = self.network(pixel_values=self.preprocess(images).to(self.dtype)).last_hidden_state
        return normalize(single(states[:, 0]), dim=-1)
