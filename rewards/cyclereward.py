"""CycleReward: a BLIP tuned on preferences that cycle consistency made, without asking people.

    r = MLP(h),   h = CLS state of the prompt read while looking at the image

Of two images the better is the one whose caption leads back to the prompt, of two captions the one whose image leads
back to the image. Bahng et al. 2025, arXiv:2506.02095; weights https://github.com/hjbahng/cyclereward (MIT). The MLP
has GELUs between its layers (768-1024-128-64-16-1). 128 tokens of a prompt are read.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import gelu

from rewards._base import Reward
from rewards._blip import Mlp, blip_large, load_original
from rewards._card import Card
from rewards._config import RewardConfig
from rewards._load import given_file, url_file

URL = "https://github.com/hjbahng/cyclereward/releases/download/v1.0.0"
LAYERS = (0, 2, 4, 6, 8)


class CycleRewardConfig(RewardConfig):
    name: Literal["cyclereward"] = "cyclereward"
    variant: Literal["Combo", "I2T", "T2I"] = "Combo"
    """Trained on preferences between captions (I2T), between images (T2I), or both."""
    weights: str | None = None
    """A file of the weights; default: the variant's, downloaded (1.8 GB)."""
    tokenizer: str = "bert-base-uncased"
    """BERT's uncased vocabulary: a folder or a Hub id."""
    sizes: dict[str, int] | None = None
    """Of another architecture: vision_hidden_size, text_num_hidden_layers, ...; default: as published."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of both towers; the head is always computed in float32."""

    card = Card(
        measures="Whether an image and a long, detailed prompt say the same, thing by thing.",
        range="about -3 to 3",
        size="446 M (BLIP ViT-L/16 and BERT base)",
        hacking="Everything the prompt names, crammed in side by side and plainly lit; looks do not count.",
        partner="hpsv2",
        licences={"hjbahng/cyclereward": "MIT"},
    )


class CycleReward(Reward):
    """Cycle-consistency preference; higher is a more complete match."""

    Config = CycleRewardConfig

    def __init__(self, config: CycleRewardConfig):
        super().__init__(config)
        if config.weights is not None:
            file = given_file("cyclereward", "weights", config.weights)
        else:
            name = f"CycleReward-{config.variant}.pth"
            file = url_file("cyclereward", "weights", f"{URL}/{name}", name, None)
        blip, self.preprocess = blip_large(config.tokenizer, 128, getattr(torch, config.dtype), config.sizes)
        blip.mlp = Mlp(blip.width, LAYERS, gelu)
        load_original(blip, file, "blip.")
        self.blip: Any = blip

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        state = self.blip.read(prompts, self.blip.look(self.preprocess(images)), images.device)
        return self.blip.mlp(state)
