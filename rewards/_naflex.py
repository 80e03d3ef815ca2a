"""SigLIP 2 at an image's own shape (NaFlex): it is resized to as many patches as are allowed, none of them padding.

    (h, w) = P (ceil(s H / P), ceil(s W / P)) with the largest s for which h w / P^2 <= the allowed number

Tschannen et al. 2025, arXiv:2502.14786, section 2.4.2. Images of a batch are of one size, so that all of them have the
same number of patches; the published processor fills up to the allowed number with patches that attention does not see.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rewards._preprocess import Preprocess
from rewards._siglip import SiglipTowers

PRECISION = 1e-5  # of s, as published: close to where h or w changes, another would choose another size


@dataclass(frozen=True)
class Patches(Preprocess):
    """Images (B, 3, H, W) in [0, 1] -> (B, h/P, w/P, 3 P^2): resized, normalised, cut into patches of P x P pixels.

    A patch is its pixels row by row, the three channels of a pixel side by side.
    """

    patch: int = 16
    most: int = 256

    def __call__(self, images: Tensor) -> Tensor:
        size = fitted(images.shape[2], images.shape[3], self.patch, self.most)
        pixels = Preprocess.__call__(replace(self, size=size), images)
        cut = pixels.unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch))  # (B, 3, h/P, P, w/P, P)
        return cut.permute(0, 2, 4, 3, 5, 1).flatten(3)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "Patches":
        unsaid = {"resample": 2, "image_mean": (0.5,) * 3, "image_std": (0.5,) * 3}
        given = Preprocess.from_hf(unsaid | dict(config) | {"do_resize": False})
        patch, most = config.get("patch_size", 16), config.get("max_num_patches", 256)
        return cls(None, mode=given.mode, mean=given.mean, std=given.std, patch=patch, most=most)


def fitted(height: int, width: int, patch: int, most: int) -> tuple[int, int]:
    """(h, w) for an image of (H, W): multiples of `patch`, at most `most` patches; s is found by bisection."""

    def scaled(scale: float) -> tuple[int, int]:
        rows, columns = (max(1, math.ceil(scale * side / patch)) for side in (height, width))
        return rows * patch, columns * patch

    low, high = PRECISION / 10, 100.0
    while high - low >= PRECISION:
        middle = (low + high) / 2
        rows, columns = scaled(middle)
        low, high = (middle, high) if rows * columns <= most * patch**2 else (low, middle)
    return scaled(low)


class NaflexTowers(SiglipTowers):
    """A transformers Siglip2Model."""

    kind = "Siglip2Model"
    preprocessing = Patches

    def _states(self, images: Tensor) -> Tensor:
        patches = self.preprocess(images)
        count, *grid = patches.shape[:3]
        flat = patches.flatten(1, 2)
        return self.vision_model(
            pixel_values=flat.to(self.dtype),
            pixel_attention_mask=torch.ones(flat.shape[:2], dtype=torch.long, device=flat.device),
            spatial_shapes=torch.tensor([grid] * count, device=flat.device),
        ).last_hidden_state
