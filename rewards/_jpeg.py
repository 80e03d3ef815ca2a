"""Baseline JPEG as tensor operations: an image's coefficients, and what is decoded from them when they are rounded.

    c = DCT_8x8(YCbCr(255 x) - 128) / q        chroma at half resolution (4:2:0), tables q of Annex K scaled by quality
    x' = RGB(DCT^-1(q round(c)) + 128) / 255

ITU-T T.81 (1992); the scaling of the tables is libjpeg's. Rounding is replaced by round(c) + (c - round(c))^3, whose
derivative is not zero (Shin & Song 2017).
"""

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
_TO_YCBCR = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))
_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136286, -0.714136286), (1.0, 1.772, 0.0))


def table(base: tuple[tuple[int, ...], ...], quality: int) -> Tensor:
    """(8, 8) divisors at a quality of 1 to 100."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return torch.tensor([[min(max((value * scale + 50) // 100, 1), 255) for value in row] for row in base])


def coefficients(images: Tensor, quality: int) -> list[Tensor]:
    """Images (B, 3, H, W) in [0, 1] -> for Y, Cb and Cr (B, blocks down, blocks across, 8, 8) of DCT / q, unrounded."""
    down, right = (-side % 16 for side in images.shape[2:])
    ycc = torch.einsum("ij,bjhw->bihw", images.new_tensor(_TO_YCBCR), 255 * images)
    ycc = pad(ycc, (0, right, 0, down), mode="replicate")
    planes = [ycc[:, :1] - 128, *avg_pool2d(ycc[:, 1:], 2).split(1, 1)]
    dct = _dct(images.dtype, images.device)
    tables = [table(base, quality).to(images) for base in (LUMA, CHROMA, CHROMA)]
    found = []
    for plane, q in zip(planes, tables, strict=True):
        blocks = plane[:, 0].unfold(1, 8, 8).unfold(2, 8, 8)
        found.append(dct @ blocks @ dct.T / q)
    return found


def decode(coded: list[Tensor], quality: int, size: tuple[int, int]) -> Tensor:
    """The image (B, 3, h, w) in [0, 1] that rounded coefficients stand for; chroma is interpolated as libjpeg does."""
    dct = _dct(coded[0].dtype, coded[0].device)
    planes = []
    for part, base in zip(coded, (LUMA, CHROMA, CHROMA), strict=True):
        blocks = dct.T @ (part * table(base, quality).to(part)) @ dct
        planes.append(blocks.transpose(2, 3).flatten(3).flatten(1, 2)[:, None])
    chroma = interpolate(torch.cat(planes[1:], 1), scale_factor=2, mode="bilinear", align_corners=False)
    ycc = torch.cat([planes[0] + 128, chroma], 1)
    rgb = torch.einsum("ij,bjhw->bihw", ycc.new_tensor(_TO_RGB), ycc)
    return (rgb[:, :, : size[0], : size[1]] / 255).clamp(0, 1)


def soft_round(x: Tensor) -> Tensor:
    """round(x) + (x - round(x))^3."""
    whole = x.detach().round()
    return whole + (x - whole) ** 3


@lru_cache(maxsize=8)
def _dct(dtype: torch.dtype, device: torch.device) -> Tensor:
    """(8, 8) orthonormal DCT-II: row k, column n."""
    rows = [[math.cos(math.pi * (2 * n + 1) * k / 16) * (math.sqrt(0.5) if k == 0 else 1) / 2 for n in range(8)]
            for k in range(8)]  # fmt: skip
    return torch.tensor(rows, dtype=dtype, device=device)
