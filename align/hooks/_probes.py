"""What can be read off images without a model, to see a generator give up: colour, fine detail, and sameness.

chroma   mean over pixels of max - min of the three channels: 0 grey, 1 fully coloured
detail   share of the luma's spectral energy (its mean left out) above half the Nyquist frequency
spread   mean distance of the images of one prompt, RMS over pixels averaged down to at most 16 x 16
"""

import torch
from torch import Tensor
from torch.nn import functional

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
SIDE = 16


def chroma(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> (B,) in [0, 1]. HSV's saturation would jump where a dark pixel changes by a level."""
    return (images.amax(1) - images.amin(1)).flatten(1).mean(1)


def detail(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B,) in [0, 1]; 0 for a flat image."""
    luma = (images.float() * torch.tensor(LUMA).to(images.device).view(3, 1, 1)).sum(1)
    height, width = luma.shape[1:]
    energy = torch.fft.fft2(luma - luma.mean((1, 2), keepdim=True)).abs().square()
    vertical, horizontal = torch.fft.fftfreq(height), torch.fft.fftfreq(width)  # Nyquist is 0.5
    high = (vertical[:, None].abs() > 0.25) | (horizontal[None].abs() > 0.25)
    total = energy.sum((1, 2))
    return torch.where(total > 0, (energy * high.to(energy)).sum((1, 2)) / total.clamp(min=1e-12), 0.0)


def spread(images: Tensor) -> Tensor:
    """(P, S, 3, H, W), S >= 2 images of each prompt -> (P,) mean pairwise distance."""
    prompts, seeds, _, height, width = images.shape
    size = (min(SIDE, height), min(SIDE, width))
    small = functional.adaptive_avg_pool2d(images.flatten(0, 1).float(), size).reshape(prompts, seeds, -1)
    distances = (small[:, :, None] - small[:, None]).square().mean(-1).sqrt()
    return distances.sum((1, 2)) / (seeds * (seeds - 1))
