"""LAION aesthetic score V2: a linear map of the CLIP ViT-L/14 image embedding, trained on human ratings from 1 to 10.

    r = w . u + b,   u = P f(pixels) / |P f(pixels)|

The published head is a stack of linear layers without activations (768-1024-128-64-16-1), so it is one affine map:
here |w| = 18.0 and b = 5.24. On the unit sphere it can reach 23, far beyond any photograph: a reward that is easily
over-optimised. Head: https://github.com/christophschuhmann/improved-aesthetic-predictor (Apache-2.0).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rewards._base import Reward
from rewards._clip import hf_preprocess, load_hf, single
from rewards._config import RewardConfig
from rewards._errors import RewardError
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


class Aesthetic(Reward):
    """Predicted human rating, about 5 to 6 for samples of SD 1.5; higher is more pleasing. Prompts are ignored."""

    Config = AestheticConfig

    def __init__(self, config: AestheticConfig):
        super().__init__(config, licence=f"Apache-2.0 (head); that of {config.model}")
        from transformers import CLIPModel

        network = load_hf(CLIPModel, config.model)  # the class of the vision tower alone reads another projection_dim
        del network.text_model, network.text_projection
        self.network = network
        self.dtype = getattr(torch, config.dtype)
        self.network.vision_model.to(self.dtype)
        self.preprocess = hf_preprocess(config.model)
        if config.preprocess == "alignprop":
            self.preprocess = Preprocess(self.preprocess.size, mode="bilinear", pil_exact=False)
        weight, bias = affine(_load_head(config.head))
        self.register_buffer("weight", weight.float())
        self.register_buffer("bias", bias.float())

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        pooled = self.network.vision_model(self.preprocess(images).to(self.dtype)).pooler_output
        embedding = normalize(self.network.visual_projection(single(pooled)), dim=-1)
        return embedding @ self.get_buffer("weight") + self.get_buffer("bias")


def affine(head: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Linear layers one after another, {layers.N.weight: (out, in), layers.N.bias: (out,)} with a last `out` of 1 ->
    the (in,) weight and () bias of their composition, in float64."""
    numbers = sorted({int(key.split(".")[1]) for key in head})
    size = head[f"layers.{numbers[0]}.weight"].shape[1]
    weight, bias = torch.eye(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    for number in numbers:
        layer = head[f"layers.{number}.weight"].double()
        weight, bias = layer @ weight, layer @ bias + head[f"layers.{number}.bias"].double()
    return weight[0], bias[0]


def _load_head(path: str | None) -> dict[str, Tensor]:
    file = Path(torch.hub.get_dir()) / "checkpoints" / "sac+logos+ava1-l14-linearMSE.pth"
    if path is not None:
        file = Path(path).expanduser()
        if not file.is_file():
            raise RewardError(f"reward aesthetic: head={path}: there is no such file. Check the path.")
    elif not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(HEAD_URL, str(file), hash_prefix=HEAD_SHA256)
        except (OSError, RuntimeError) as error:
            raise RewardError(
                f"reward aesthetic: its head could not be downloaded from {HEAD_URL} ({error}). Download it "
                "elsewhere and set head to the file."
            ) from error
    head = torch.load(file, map_location="cpu", weights_only=True)
    if not head or not all(key.startswith("layers.") and isinstance(value, Tensor) for key, value in head.items()):
        raise RewardError(f"reward aesthetic: {file} holds no layers.N.weight and layers.N.bias. Give another head.")
    return head
