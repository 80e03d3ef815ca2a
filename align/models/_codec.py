"""Pixels and latents: a differentiable, checkpointed wrapper of diffusers' AutoencoderKL."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from align.models._base import Posterior


class KLCodec:
    """x0 = (z - shift) scale for the autoencoder's own latents z. `chunk` rows are decoded, and recomputed, at once."""

    def __init__(self, vae: Any, *, chunk: int = 8):
        self.vae = vae
        self.chunk = chunk
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.channels = vae.config.latent_channels
        self.scale = vae.config.scaling_factor
        self.shift = getattr(vae.config, "shift_factor", None) or 0.0

    def encode(self, pixels: Tensor) -> Posterior:
        """(B, 3, H, W) in [0, 1] -> the posterior over x0, (B, C, H/factor, W/factor), in the dtype of the pixels."""
        latents = self.vae.encode((2 * pixels - 1).to(self.vae.dtype)).latent_dist
        mean = (latents.mean.to(pixels.dtype) - self.shift) * self.scale
        return Posterior(mean, latents.logvar.to(pixels.dtype) + 2 * math.log(self.scale))

    def decode(self, x0: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, H, W) in [0, 1], in the dtype of x0. Differentiable: only its input is stored.

        Clamped, as a saved image is: pixels out of range pass no gradient.
        """
        if not (torch.is_grad_enabled() and x0.requires_grad):
            return torch.cat([self._decode(rows) for rows in x0.split(self.chunk)])
        return torch.cat([checkpoint(self._decode, rows, use_reentrant=False) for rows in x0.split(self.chunk)])

    def _decode(self, x0: Tensor) -> Tensor:
        z = (x0 / self.scale + self.shift).to(self.vae.dtype)
        return (self.vae.decode(z, return_dict=False)[0].to(x0.dtype) / 2 + 0.5).clamp(0, 1)
