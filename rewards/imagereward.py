"""ImageReward: a BLIP tuned on expert rankings of generated images, standardised to mean 0 and deviation 1.

    r = (MLP(h) - 0.1672) / 1.0333,   h = CLS state of the prompt read while looking at the image

Xu et al. 2023, arXiv:2304.05977; weights https://huggingface.co/zai-org/ImageReward (Apache-2.0). The MLP is linear
layers without activations (768-1024-128-64-16-1). 35 tokens of a prompt are read.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from rewards._base import Reward
from rewards._blip import Mlp, blip_large, load_original
from rewards._card import Card
from rewards._config import RewardConfig
from rewards._load import given_file, hub_file

MEAN, STD = 0.16717362830052426, 1.0333394966054072
LAYERS = (0, 2, 4, 6, 7)


class ImageRewardConfig(RewardConfig):
    name: Literal["imagereward"] = "imagereward"
    weights: str | None = None
    """A file of the weights; default: downloaded from the Hub (zai-org/ImageReward, 1.8 GB)."""
    tokenizer: str = "bert-base-uncased"
    """BERT's uncased vocabulary: a folder or a Hub id."""
    sizes: dict[str, int] | None = None
    """Of another architecture: vision_hidden_size, text_num_hidden_layers, ...; default: as published."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of both towers; the head is always computed in float32."""

    card = Card(
        measures="How experts would rank an image for its prompt: match first, then looks and flaws.",
        range="about N(0, 1) (SD 1.4 about 0, SDXL about 0.8); saturates near 2",
        size="445 M (BLIP ViT-L/16 and BERT base)",
        hacking="The prompt's objects large, central and doubled, hard contrast, ornament everywhere.",
        partner="pickscore",
        licences={"zai-org/ImageReward": "Apache-2.0"},
    )


class ImageReward(Reward):
    """Standardised human ranking; higher is preferred."""

    Config = ImageRewardConfig

    def __init__(self, config: ImageRewardConfig):
        super().__init__(config)
        if config.weights is not None:
            file = given_file("imagereward", "weights", config.weights)
        else:
            file = hub_file("imagereward", "weights", "zai-org/ImageReward", "ImageReward.pt")
        blip, self.preprocess = blip_large(config.tokenizer, 35, getattr(torch, config.dtype), config.sizes)
        blip.mlp = Mlp(blip.width, LAYERS)
        load_original(blip, file, "blip.")
        self.blip: Any = blip

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        state = self.blip.read(prompts, self.blip.look(self.preprocess(images)), images.device)
        return (self.blip.mlp(state) - MEAN) / STD
