"""Which part of an image is seen: scaled until it covers its bucket, cropped, perhaps mirrored; alike for a pair.

    scale   = max(H/h0, W/w0)                        image (h0, w0), bucket (H, W)
    offset  = round(u (scaled size - bucket))        u in [0, 1]^2: 1/2 is the centre, else drawn once for the pair

Both images of a pair go into the winner's bucket with the same u and the same flips: what differs between them is what
the comparison was about. Buckets hold about the pixels of `image_size` at aspect ratios from 1:max_aspect to
max_aspect:1, in steps of `bucket_step` (Podell et al., SDXL, arXiv 2307.01952, section 2.3, which also feeds the
original size, the crop's corner and the bucket's size to the network: `View.ids`).
"""

from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from align.errors import UserError
from align.registry import ComponentConfig
from samplers import generator


class ViewConfig(ComponentConfig):
    """How images become the network's inputs."""

    image_size: tuple[int, int] | None = None
    """Height and width in pixels. Default: the size the network was trained at."""
    buckets: bool = False
    """Keep aspect ratios: every pair goes to the bucket nearest to its winner's, of about image_size's area. A batch
    holds pairs of one bucket."""
    bucket_step: int = Field(default=64, ge=1)
    """Sides of buckets are multiples of this."""
    max_aspect: float = Field(default=2.0, ge=1)
    """The longest bucket, long side over short side."""
    crop: Literal["center", "random"] = "center"
    """Where what does not fit is cut off; random is drawn once for each pair."""
    flip: bool = False
    """Also hold the mirrored pair; half of the updates see it. Not for captions that say left or right."""


class View(NamedTuple):
    """One image's place in its bucket. Sizes are (height, width)."""

    original: tuple[int, int]
    scaled: tuple[int, int]
    corner: tuple[int, int]
    """Top left of the crop, in the scaled image."""
    bucket: tuple[int, int]

    @property
    def ids(self) -> Tensor:
        """SDXL's six numbers: original size, crop's corner, target size. (6,) int64"""
        return torch.tensor([*self.original, *self.corner, *self.bucket])


def buckets(config: ViewConfig, image_size: tuple[int, int]) -> list[tuple[int, int]]:
    """The sizes (height, width) that images are brought to; without buckets, `image_size` alone."""
    if not config.buckets:
        return [image_size]
    area, step = image_size[0] * image_size[1], config.bucket_step
    found = set()
    for height in range(step, int((area * config.max_aspect) ** 0.5) + 1, step):
        width = int(area / height) // step * step
        if width and max(height / width, width / height) <= config.max_aspect:
            found |= {(height, width), (width, height)}
    if not found:
        raise UserError(
            f"data.views.bucket_step={step}: no bucket of {image_size[0]} x {image_size[1]} pixels has sides that are "
            "multiples of it. Lower it."
        )
    return sorted(found)


def nearest(size: tuple[int, int], sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """The bucket whose aspect ratio is nearest to that of `size`, by their quotient; among equals the largest."""
    ratio = size[0] / size[1]

    def distance(bucket: tuple[int, int]) -> tuple[float, int]:
        quotient = bucket[0] / bucket[1] / ratio
        return max(quotient, 1 / quotient), -bucket[0] * bucket[1]

    return min(sizes, key=distance)


def view(size: tuple[int, int], bucket: tuple[int, int], u: tuple[float, float] = (0.5, 0.5)) -> View:
    """The view of an image of `size` in `bucket`, cut at the share `u` of what is too much."""
    scale = max(bucket[0] / size[0], bucket[1] / size[1])
    scaled = max(bucket[0], round(size[0] * scale)), max(bucket[1], round(size[1] * scale))
    corner = round(u[0] * (scaled[0] - bucket[0])), round(u[1] * (scaled[1] - bucket[1]))
    return View(size, scaled, corner, bucket)


def offsets(config: ViewConfig, seed: int, key: str) -> tuple[float, float]:
    """u of one pair."""
    if config.crop == "center":
        return 0.5, 0.5
    first, second = torch.rand(2, generator=generator(seed, f"crop/{key}", 0)).tolist()
    return first, second


def pixels(image: Any, place: View) -> Tensor:
    """A PIL image -> (3, H, W) in [0, 1], scaled by Lanczos' filter where its size changes, and cropped."""
    from PIL import Image

    if place.scaled != place.original:
        image = image.resize(place.scaled[::-1], Image.Resampling.LANCZOS)
    top, left = place.corner
    image = image.crop((left, top, left + place.bucket[1], top + place.bucket[0]))
    data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return data.view(*place.bucket, 3).permute(2, 0, 1).float() / 255
