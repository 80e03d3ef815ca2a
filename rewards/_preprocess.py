"""Differentiable image preprocessing whose pixels are those of PIL, exactly.

A reward was trained on images that PIL resized, and a resize that is only similar moves scores by more than training
does (bilinear for bicubic: up to 23 of 255 levels; without antialiasing: 171). PIL resamples horizontally, then
vertically; each pass is a matrix of filter weights in 22-bit fixed point, followed by rounding and clipping to 8 bits.
Integers of that size are exact in float64, so the same matrix gives the same levels; the gradient is the matrix's own,
straight through the rounding.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from rewards._errors import RewardError

Mode = Literal["bicubic", "bilinear"]
CropRounding = Literal["torchvision", "hf"]

LONGEST = 64  # long side over short side; a longer image would fill the memory when its short side is enlarged
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


def quantise(images: Tensor) -> Tensor:
    """Clip to [0, 1] and round to the nearest of 256 levels; the gradient is the identity (straight-through)."""
    return images + (images.detach().clamp(0, 1).mul(255).round().div(255) - images.detach())


def differentiable_resize(
    images: Tensor, size: tuple[int, int], mode: Mode = "bicubic", *, pil_exact: bool = True
) -> Tensor:
    """Images (B, C, H, W) in [0, 1] -> (B, C, h, w) for size = (h, w), antialiased.

    With `pil_exact` the result is what PIL makes of the images rounded to 8 bits, horizontally first (Pillow 13 turns
    the order round where an image is squashed much more in height than in width; checkpoints were trained before).
    Without it the resize is one float pass that may overshoot [0, 1] (bicubic), as in pipelines that resize tensors.
    """
    if not pil_exact:
        return interpolate(images, size=size, mode=mode, antialias=True, align_corners=False)
    height, width = images.shape[2:]
    if width != size[1]:
        images = _Pass.apply(images, _pil_weights(width, size[1], mode, images.device))  # type: ignore[assignment]
    if height != size[0]:
        weights = _pil_weights(height, size[0], mode, images.device)
        images = _Pass.apply(images.transpose(2, 3), weights).transpose(2, 3)  # type: ignore[union-attr]
    return images if (height, width) != size else quantise(images)


class _Pass(torch.autograd.Function):
    """One pass of PIL along the last dimension: weights (w', w) on 8-bit levels, rounded half up and clipped."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(weights)
        levels = images.detach().to(weights.dtype).clamp(0, 1).mul(255).round()
        return (levels @ weights.T).add(0.5).floor().clamp(0, 255).div(255).to(images.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (weights,) = ctx.saved_tensors
        return grads[0] @ weights.to(grads[0].dtype), None


@lru_cache(maxsize=64)
def _pil_weights(source: int, target: int, mode: Mode, device: torch.device) -> Tensor:
    """(target, source) filter weights in multiples of 2^-22, as Pillow's Resample.c computes them."""
    scale = source / target
    stretch = max(scale, 1.0)  # antialiasing: the filter is as wide as the pixels that become one
    support = stretch * (2.0 if mode == "bicubic" else 1.0)
    rows = torch.zeros(target, source, dtype=torch.float64)
    for row in range(target):
        center = (row + 0.5) * scale
        first, last = max(int(center - support + 0.5), 0), min(int(center + support + 0.5), source)
        taps = [_filter(abs((pixel - center + 0.5) * (1.0 / stretch)), mode) for pixel in range(first, last)]
        total = sum(taps)
        rows[row, first:last] = torch.tensor([_fixed_point(tap / total) for tap in taps], dtype=torch.float64)
    # MPS has no float64: there isolated ties may fall one level off.
    return rows.to(device=device, dtype=torch.float32 if device.type == "mps" else torch.float64)


def _filter(x: float, mode: Mode) -> float:
    """Triangle, or Keys' cubic with a = -1/2 (Keys 1981, eq. 4), at a distance x >= 0."""
    if mode == "bilinear":
        return max(1.0 - x, 0.0)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return ((-0.5 * x + 2.5) * x - 4) * x + 2 if x < 2 else 0.0


def _fixed_point(weight: float) -> float:
    """Rounded half away from zero to a multiple of 2^-22."""
    return math.copysign(math.floor(abs(weight) * 2**22 + 0.5), weight) / 2**22


def short_side(images: Tensor, length: int) -> tuple[int, int]:
    """(h, w) with the short side at `length`; the long side is truncated, as in torchvision and HF."""
    height, width = images.shape[2:]
    if max(height, width) > LONGEST * min(height, width):
        raise RewardError(
            f"an image of {width} x {height} pixels is too long: with its short side at {length} it would take "
            f"{length} x {length * max(height, width) // min(height, width)}. Cut it to at most {LONGEST} to 1."
        )
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
        elif isinstance(size, int) and not config.get("do_center_crop", False):
            size = (size, size)  # an old ViT's: nothing would make its sides equal afterwards
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
