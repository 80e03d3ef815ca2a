"""Differentiable image preprocessing whose pixels are those of PIL.

A reward was trained on images that PIL resized, and a resize that is only similar moves scores by more than training
does. PIL resamples horizontally, then vertically, and rounds and clips to 8 bits after each pass; here each pass is
an antialiased `interpolate` followed by straight-through rounding: the value is PIL's (isolated ties may fall one
level off), the gradient that of the plain antialiased resize.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.nn.functional import interpolate

Mode = Literal["bicubic", "bilinear"]
CropRounding = Literal["torchvision", "hf"]

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


def quantise(images: Tensor) -> Tensor:
    """Clip to [0, 1] and round to the nearest of 256 levels; the gradient is the identity (straight-through)."""
    return images + (images.detach().clamp(0, 1).mul(255).round().div(255) - images.detach())


def differentiable_resize(
    images: Tensor, size: tuple[int, int], mode: Mode = "bicubic", *, pil_exact: bool = True
) -> Tensor:
    """Images (B, C, H, W) in [0, 1] -> (B, C, h, w) for size = (h, w), antialiased.

    `pil_exact` imitates PIL on 8-bit images, the input included; without it the resize is one float pass that may
    overshoot [0, 1] (bicubic), as pipelines do that resize tensors.
    """
    if not pil_exact:
        return interpolate(images, size=size, mode=mode, antialias=True, align_corners=False)
    images = quantise(images)
    for between in ((images.shape[2], size[1]), size):  # horizontal, then vertical
        if between != tuple(images.shape[2:]):  # like PIL, a pass that changes nothing is left out
            images = quantise(interpolate(images, size=between, mode=mode, antialias=True, align_corners=False))
    return images


def short_side(images: Tensor, length: int) -> tuple[int, int]:
    """(h, w) with the short side at `length`; the long side is truncated, as in torchvision and HF."""
    height, width = images.shape[2:]
    if height <= width:
        return length, int(length * width / height)
    return int(length * height / width), length


def center_crop(images: Tensor, size: tuple[int, int], rounding: CropRounding) -> Tensor:
    """The middle (h, w) of images at least as large.

    The offset of an odd margin differs between libraries: torchvision, openai and open_clip take
    int(round(margin / 2)) (half to even), HF takes margin // 2: one pixel apart when margin % 4 == 3.
    """
    margins = [have - want for have, want in zip(images.shape[2:], size, strict=True)]
    if min(margins) < 0:
        raise ValueError(f"cannot crop {size} from an image of {tuple(images.shape[2:])}")
    top, left = (round(m / 2) if rounding == "torchvision" else m // 2 for m in margins)
    return images[:, :, top : top + size[0], left : left + size[1]]


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(images - mean) / std, channel by channel."""
    return (images - images.new_tensor(mean).view(1, -1, 1, 1)) / images.new_tensor(std).view(1, -1, 1, 1)


@dataclass(frozen=True)
class Preprocess:
    """Images (B, 3, H, W) in [0, 1] -> what an image tower takes: resize, crop, normalise.

    `size` is the length of the short side, or (height, width), to which images are squashed; None leaves it.
    """

    size: int | tuple[int, int] | None
    crop: tuple[int, int] | None = None
    mode: Mode = "bicubic"
    crop_rounding: CropRounding = "hf"
    mean: tuple[float, ...] = OPENAI_MEAN
    std: tuple[float, ...] = OPENAI_STD
    pil_exact: bool = True

    def __call__(self, images: Tensor) -> Tensor:
        if self.pil_exact:
            images = quantise(images)
        if self.size is not None:
            size = short_side(images, self.size) if isinstance(self.size, int) else self.size
            images = differentiable_resize(images, size, self.mode, pil_exact=self.pil_exact)
        if self.crop is not None:
            images = center_crop(images, self.crop, self.crop_rounding)
        return normalise(images, self.mean, self.std)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "Preprocess":
        """From a checkpoint's preprocessor_config.json (older files may write sizes as plain numbers)."""
        resample = config.get("resample", 3)
        modes: dict[int, Mode] = {2: "bilinear", 3: "bicubic"}  # PIL.Image.Resampling
        if resample not in modes:
            raise ValueError(f"resample={resample} is not supported, only 2 (bilinear) and 3 (bicubic) are")
        size = config.get("size", {"shortest_edge": 224}) if config.get("do_resize", True) else None
        if isinstance(size, Mapping):
            size = size["shortest_edge"] if "shortest_edge" in size else (size["height"], size["width"])
        crop = config.get("crop_size", size) if config.get("do_center_crop", False) else None
        if isinstance(crop, Mapping):
            crop = (crop["height"], crop["width"])
        elif isinstance(crop, int):
            crop = (crop, crop)
        plain = not config.get("do_normalize", True)
        return cls(
            size=size,
            crop=crop,
            mode=modes[resample],
            mean=(0.0,) * 3 if plain else tuple(config.get("image_mean", OPENAI_MEAN)),
            std=(1.0,) * 3 if plain else tuple(config.get("image_std", OPENAI_STD)),
        )

    @classmethod
    def from_open_clip(cls, config: Mapping[str, Any]) -> "Preprocess":
        """From open_clip's preprocess_cfg: resize_mode "shortest" (with a centre crop) or "squash"."""
        size = config["size"]
        height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
        resize = config.get("resize_mode", "shortest")
        if resize not in ("shortest", "squash") or (resize == "shortest" and height != width):
            raise ValueError(f"open_clip's resize_mode {resize!r} at size {(height, width)} is not supported")
        return cls(
            size=height if resize == "shortest" else (height, width),
            crop=(height, width) if resize == "shortest" else None,
            mode="bilinear" if config.get("interpolation") == "bilinear" else "bicubic",
            crop_rounding="torchvision",
            mean=tuple(config.get("mean", OPENAI_MEAN)),
            std=tuple(config.get("std", OPENAI_STD)),
        )
