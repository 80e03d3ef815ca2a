"""LAION aesthetic score V2: a linear map of the CLIP ViT-L/14 image embedding, trained on human ratings from 1 to 10.

    r = w . u + b,   u = P f(pixels) / |P f(pixels)|

The published head is a stack of linear layers without activations (768-1024-128-64-16-1), so it is one affine map:
here |w| = 18.0 and b = 5.24. On the unit sphere it can reach 23, far beyond any photograph: a reward that is easily
over-optimised. Head: https://github.com/christophschuhmann/improved-aesthetic-predictor (Apache-2.0).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rewards._affine import affine, read_head
from rewards._base import Reward
from rewards._card import Card
from rewards._clip import single
from rewards._config import RewardConfig
from rewards._load import given_file, hf_preprocess, load_hf, url_file
from rewards._preprocess import Preprocess

HEAD_URL = (
    "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/sac%2Blogos%2Bava1-l14-linearMSE.pth"
)
HEAD_SHA256 = "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0"


class AestheticConfig(RewardConfig):
    name: Literal["aesthetic"] = "aesthetic"
    model: str = "openai/clip-vit-large-patch14"
    """The CLIP whose projected image embedding the head reads: a folder or a Hub id in HF's format."""
    head: str | None = None
    """File of a head (layers.N.weight, layers.N.bias, no activations); default: the published one, downloaded."""
    preprocess: Literal["pil", "alignprop"] = "pil"
    """`pil`: as the head was trained and DDPO scores. `alignprop`: bilinear, no crop, as AlignProp and TRL train."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the image tower; projection and head are always computed in float32."""

    card = Card(
        measures="How pleasing people would rate a picture, whatever it shows.",
        range="-13 to 23, 4 to 7 in use (samples of SD 1.5 about 5.3)",
        size="304 M (ViT-L/14, image tower)",
        hacking="One painterly style for every prompt, soft light, no objects: from 8 on the prompt no longer matters.",
        partner="clip",
        licences={"improved-aesthetic-predictor": "Apache-2.0"},
    )

    def licences(self) -> dict[str, str]:
        return super().licences() | self._of_checkpoint(self.model)


class Aesthetic(Reward):
    """Predicted human rating, about 5 to 6 for samples of SD 1.5; higher is more pleasing. Prompts are ignored."""

    Config = AestheticConfig

    def __init__(self, config: AestheticConfig):
        super().__init__(config)
        from transformers import CLIPModel

        network = load_hf(CLIPModel, config.model)  # the class of the vision tower alone reads another projection_dim
        del network.text_model, network.text_projection
        self.network = network
        self.dtype = getattr(torch, config.dtype)
        self.network.vision_model.to(self.dtype)
        self.preprocess = hf_preprocess(config.model)
        if config.preprocess == "alignprop":
            self.preprocess = Preprocess(self.preprocess.size, mode="bilinear", pil_exact=False)
        if config.head is not None:
            file = given_file("aesthetic", "head", config.head)
        else:
            file = url_file("aesthetic", "head", HEAD_URL, "sac+logos+ava1-l14-linearMSE.pth", HEAD_SHA256)
        weight, bias = affine(read_head(file, "layers"))
        self.register_buffer("weight", weight.float())
        self.register_buffer("bias", bias.float())

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        pooled = self.network.vision_model(self.preprocess(images).to(self.dtype)).pooler_output
        embedding = normalize(self.network.visual_projection(single(pooled)), dim=-1)
        return embedding @ self.get_buffer("weight") + self.get_buffer("bias")
