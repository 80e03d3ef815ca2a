"""JPEG size: how well an image compresses (or, with `goal`, how badly).

    exact:    r = -bytes / 1000 of Pillow's JPEG at `quality`; no gradient (Black et al. 2023, arXiv:2305.13301)
    rate:     r = -sum_i log2(1 + |c_i|) a / 8000, an estimate of the same in kB from the DCT coefficients c over their
              divisors; a = 2.5 makes it kB, within 15 % of all but the headers, on clouds of all degrees of detail
    distance: r = -sqrt(mean (x - JPEG(x))^2), how much a coding at `quality` loses (cf. Clark et al. 2023,
              arXiv:2309.17400)

The exact number depends on the version of libjpeg by a few bytes.
"""

import io
from collections.abc import Sequence
from typing import Literal

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from rewards._base import Reward
from rewards._card import Card
from rewards._config import RewardConfig
from rewards._jpeg import coefficients, decode, soft_round
from rewards._preprocess import quantise

BITS = 2.5


class JpegConfig(RewardConfig):
    name: Literal["jpeg"] = "jpeg"
    form: Literal["exact", "rate", "distance"] = "rate"
    """`exact` has no gradient; `rate` estimates it; `distance` is what coding loses."""
    goal: Literal["compressible", "incompressible"] = "compressible"
    """Small files, or large ones."""
    quality: int = Field(95, ge=1, le=100)
    """JPEG's own, 1 to 100."""

    card = Card(
        measures="The size of an image as a JPEG, in kB: texture and detail.",
        range="compressible: below 0, -130 to -90 for samples of SD 1.5 at 512 pixels; incompressible: above 0",
        size="no network",
        hacking="Compressible: flat, blurred, empty pictures. Incompressible: noise over everything.",
        partner="clip",
    )

    def has_gradient(self) -> bool:
        return self.form != "exact"


class Jpeg(Reward):
    """Minus the size in kB (or, incompressible, plus); higher is better compressed (or worse). Prompts are ignored."""

    Config = JpegConfig

    def __init__(self, config: JpegConfig):
        super().__init__(config)
        self.form, self.quality = config.form, config.quality
        self.sign = -1.0 if config.goal == "compressible" else 1.0

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.sign * getattr(self, f"_{self.form}")(images)

    def _exact(self, images: Tensor) -> Tensor:
        levels = quantise(images.detach()).mul(255).round().to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()
        sizes = []
        for picture in levels:
            file = io.BytesIO()
            Image.fromarray(picture).save(file, "JPEG", quality=self.quality)
            sizes.append(file.tell() / 1000)
        return torch.tensor(sizes, dtype=torch.float32, device=images.device)

    def _rate(self, images: Tensor) -> Tensor:
        planes = coefficients(images, self.quality)
        return sum(torch.log2(1 + c.abs()).flatten(1).sum(1) for c in planes) * (BITS / 8000)  # type: ignore[return-value]

    def _distance(self, images: Tensor) -> Tensor:
        coded = [soft_round(c) for c in coefficients(images, self.quality)]
        loss = images - decode(coded, self.quality, (images.shape[2], images.shape[3]))
        return (loss.square().flatten(1).mean(1) + 1e-12).sqrt()
