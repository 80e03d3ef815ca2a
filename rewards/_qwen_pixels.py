"""The image processor of the Qwen-VL models, differentiable: images -> patches, at the size that the model chooses.

Both sides become the nearest multiples of f = patch x merge; beyond `most` pixels or below `least` the image is scaled
first. Resized as PIL does (bicubic), normalised, cut into patches in the order (row, column, row in the merge, column
in the merge), each patch twice, because a still image is two equal frames.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rewards._errors import RewardError
from rewards._preprocess import OPENAI_MEAN, OPENAI_STD, differentiable_resize, normalise, quantise


@dataclass(frozen=True)
class QwenPixels:
    """Images (B, 3, H, W) in [0, 1] -> (pixel_values (B x patches, 3 x 2 x patch^2), image_grid_thw (B, 3))."""

    least: int = 56 * 56
    """Pixels."""
    most: int = 28 * 28 * 1280
    patch: int = 14
    merge: int = 2
    frames: int = 2
    mean: tuple[float, ...] = OPENAI_MEAN
    std: tuple[float, ...] = OPENAI_STD

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "QwenPixels":
        """From preprocessor_config.json; older files say min_pixels and max_pixels."""
        size = config.get("size") or {}
        return cls(
            least=config.get("min_pixels") or size.get("shortest_edge", cls.least),
            most=config.get("max_pixels") or size.get("longest_edge", cls.most),
            patch=config.get("patch_size", cls.patch),
            merge=config.get("merge_size", cls.merge),
            frames=config.get("temporal_patch_size", cls.frames),
            mean=tuple(config.get("image_mean", OPENAI_MEAN)),
            std=tuple(config.get("image_std", OPENAI_STD)),
        )

    def size(self, height: int, width: int) -> tuple[int, int]:
        """What an image is resized to."""
        factor = self.patch * self.merge
        if max(height, width) > 200 * min(height, width):
            raise RewardError(f"an image of {width} x {height} pixels is too long. Cut it to at most 200 to 1.")
        rows, columns = (round(side / factor) * factor for side in (height, width))
        if rows * columns > self.most:
            scale = math.sqrt(height * width / self.most)
            rows, columns = (max(factor, math.floor(side / scale / factor) * factor) for side in (height, width))
        elif rows * columns < self.least:
            scale = math.sqrt(self.least / (height * width))
            rows, columns = (math.ceil(side * scale / factor) * factor for side in (height, width))
        return rows, columns

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        size = self.size(*images.shape[2:])
        pixels = normalise(differentiable_resize(quantise(images), size, "bicubic"), self.mean, self.std)
        rows, columns = (side // self.patch for side in size)
        m, p = self.merge, self.patch
        cut = pixels.view(len(images), 3, rows // m, m, p, columns // m, m, p).permute(0, 2, 5, 3, 6, 1, 4, 7)
        flat = cut[..., None, :, :].expand(*cut.shape[:6], self.frames, p, p).reshape(len(images) * rows * columns, -1)
        grid = torch.tensor([[1, rows, columns]] * len(images), device=images.device)
        return flat, grid
