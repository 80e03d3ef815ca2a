"""Human Preference Score v2: the cosine of a CLIP ViT-H/14 tuned on human choices between generated images.

    r = u . w   (no logit scale); about 0.2 to 0.35. Versions 2.0 and 2.1 are not comparable.

Wu et al. 2023, arXiv:2306.09341; weights https://huggingface.co/xswu/HPSv2 (Apache-2.0). Its preprocessing differs from
every other CLIP reward's: the long side becomes 224 by a float resize without rounding, and black pads it to a square.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from rewards._base import Reward
from rewards._card import Card
from rewards._clip import OpenClip
from rewards._config import RewardConfig
from rewards._load import given_file, hub_file
from rewards._preprocess import Preprocess, differentiable_resize, normalise, quantise

FILES = {"2.0": "HPS_v2_compressed.pt", "2.1": "HPS_v2.1_compressed.pt"}


class HPSv2Config(RewardConfig):
    name: Literal["hpsv2"] = "hpsv2"
    version: Literal["2.0", "2.1"] = "2.1"
    """Of the weights; scores of the two are not comparable."""
    weights: str | None = None
    """A file of the version's weights; default: downloaded from the Hub (xswu/HPSv2, 2 GB)."""
    model: str = "ViT-H-14"
    """The open_clip architecture that the weights belong to."""
    preprocess: Literal["hpsv2", "alignprop"] = "hpsv2"
    """`hpsv2`: the benchmark's own. `alignprop`: bilinear, nothing padded, as AlignProp and TRL train."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the image tower; projection and cosine are always computed in float32."""

    card = Card(
        measures="Which of several generated images people prefer for a prompt.",
        range="[-1, 1], 0.2 to 0.35 in use; versions 2.0 and 2.1 are not comparable",
        size="986 M (ViT-H/14)",
        hacking="Smooth, painted, high-contrast pictures; detail and light where the prompt asks for neither.",
        partner="imagereward",
        licences={"xswu/HPSv2": "Apache-2.0"},
    )


class HPSv2(Reward):
    """Cosine of image and prompt as people prefer it; higher is preferred."""

    Config = HPSv2Config

    def __init__(self, config: HPSv2Config):
        super().__init__(config)
        if config.weights is not None:
            weights = given_file("hpsv2", "weights", config.weights)
        else:
            weights = hub_file("hpsv2", "weights", "xswu/HPSv2", FILES[config.version])
        self.clip = OpenClip(f"{config.model}/{weights.absolute()}", getattr(torch, config.dtype))
        size = self.clip.preprocess.size
        assert isinstance(size, int)  # every open_clip ViT is square
        if config.preprocess == "alignprop":
            self.clip.preprocess = Preprocess(size, mode="bilinear", pil_exact=False)
        else:
            self.clip.preprocess = Padded(size, mean=self.clip.preprocess.mean, std=self.clip.preprocess.std)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return (self.clip.images(images) * self.clip.prompts(prompts, images.device)).sum(-1)


class Padded(Preprocess):
    """The long side to `size` in one float pass, then black to a square, then normalised."""

    def __call__(self, images: Tensor) -> Tensor:
        assert isinstance(self.size, int)
        images = quantise(images)
        scale = self.size / max(images.shape[2:])
        height, width = (round(side * scale) for side in images.shape[2:])
        if scale != 1:
            images = differentiable_resize(images, (height, width), "bicubic", pil_exact=False)
        down, right = self.size - height, self.size - width
        images = pad(images, (right // 2, right - right // 2, down // 2, down - down // 2))
        return normalise(images, self.mean, self.std)
