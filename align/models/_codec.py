"""Pixels and latents: a differentiable, checkpointed wrapper of diffusers' AutoencoderKL."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from align.models._base import Posterior

MEGAPIXEL = 2**20


class KLCodec:
    """x0 = (z - shift) scale for the autoencoder's own latents z.

    `chunk` rows are decoded, and recomputed, at once; None: as many as a megapixel holds, 1 to 8.

    scale and shift are numbers, or (1, C, 1, 1) where the autoencoder has a mean and a deviation for each channel.
    """

    def __init__(self, vae: Any, *, chunk: int | None = None):
        self.vae = vae
        self.chunk = chunk
        self.factor, self.channels = self.sizes()
        self.scale: float | Tensor = getattr(vae.config, "scaling_factor", 1.0)
        self.shift: float | Tensor = getattr(vae.config, "shift_factor", None) or 0.0
        means, deviations = (getattr(vae.config, name, None) for name in ("latents_mean", "latents_std"))
        if means is not None and deviations is not None:
            self.scale, self.shift = self.scale / _channels(deviations), _channels(means)

    def sizes(self) -> tuple[int, int]:
        """Pixels that a latent stands for, along each side, and its channels."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1), self.vae.config.latent_channels

    def encode(self, pixels: Tensor) -> Posterior:
        """(B, 3, H, W) in [0, 1] -> the posterior over x0, (B, C, H/factor, W/factor), in the dtype of the pixels."""
        latents = self.posterior((2 * pixels - 1).to(self.vae.dtype))
        scale, shift = self._scaling(pixels)
        mean = (latents.mean.to(pixels.dtype) - shift) * scale
        return Posterior(mean, latents.logvar.to(pixels.dtype) + 2 * torch.as_tensor(scale).log())

    def decode(self, x0: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, H, W) in [0, 1], in the dtype of x0. Differentiable: only its input is stored.

        Clamped, as a saved image is: pixels out of range pass no gradient.
        """
        pixels = x0.shape[-2] * x0.shape[-1] * self.factor**2
        parts = x0.split(self.chunk or max(1, min(8, MEGAPIXEL // pixels)))
        if not (torch.is_grad_enabled() and x0.requires_grad):
            return torch.cat([self._decode(rows) for rows in parts])
        return torch.cat([checkpoint(self._decode, rows, use_reentrant=False) for rows in parts])

    def _decode(self, x0: Tensor) -> Tensor:
        scale, shift = self._scaling(x0)
        z = (x0 / scale + shift).to(self.vae.dtype)
        return (self.image(z).to(x0.dtype) / 2 + 0.5).clamp(0, 1)

    def posterior(self, image: Tensor) -> Any:
        """(B, 3, H, W) in [-1, 1] -> the autoencoder's mean and logvar, (B, C, h, w) each, in its own scale."""
        return self.vae.encode(image).latent_dist

    def image(self, z: Tensor) -> Tensor:
        """The autoencoder's own latents, (B, C, h, w) -> (B, 3, H, W), about [-1, 1]."""
        return self.vae.decode(z, return_dict=False)[0]

    def _scaling(self, like: Tensor) -> tuple[float | Tensor, float | Tensor]:
        """scale and shift, ready to combine with `like`."""
        scale, shift = (each.to(like) if isinstance(each, Tensor) else each for each in (self.scale, self.shift))
        return scale, shift


def _channels(values: Any) -> Tensor:
    """One number a channel -> (1, C, 1, 1)."""
    return torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1, 1)
