"""Images of known kinds, prompts, and weights under which features differ from one input to another."""

import numpy as np
import torch
from PIL import Image

PROMPTS = ["a red circle", "two blue squares", "a green star left of a red triangle"]


def randomise(network: torch.nn.Module, seed: int, std: float = 0.15) -> torch.nn.Module:
    """Weights large enough that features differ from one input to another; default initialisation hides bugs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim == 0:
                continue  # the temperature
            parameter.normal_(0, std, generator=generator)
            if "norm" in name or "ln_" in name:
                parameter.add_(1.0 if name.endswith("weight") else 0.0)
    return network


def noise(height: int, width: int) -> Image.Image:
    """Independent 8-bit levels: the hardest case for a resize."""
    levels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


def smooth(height: int, width: int) -> Image.Image:
    """Sums of slow waves: many values near a rounding tie."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    waves = [np.sin(3 * x + 2 * y), np.cos(5 * x - y), np.sin(4 * x * y + 1)]
    return Image.fromarray((127.5 + 120 * np.stack(waves, -1)).astype(np.uint8))


def stripes(height: int, width: int) -> Image.Image:
    """Saturated black and white bars: bicubic overshoots at every edge."""
    y, x = np.mgrid[0:height, 0:width]
    bars = np.stack([x // 7 % 2, y // 11 % 2, (x + y) // 13 % 2], -1)
    return Image.fromarray((255 * bars).astype(np.uint8))


def to_tensor(*images: Image.Image) -> torch.Tensor:
    """PIL images of one size -> (B, 3, H, W) in [0, 1]."""
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in images])


SIZES = [(512, 512), (1024, 1024), (768, 512), (300, 401), (224, 227), (64, 70)]
"""The last is 32 x 35 at the size of the tiny models: crops round differently on a margin of 3."""
PICTURES = [noise, smooth, stripes]
