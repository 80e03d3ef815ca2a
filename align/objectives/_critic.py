"""A critic on latents: is this prediction of x_0 the anchor's (0) or the concept's (1)? One logit a patch.

    L_critic = BCE(D(real), 0) + BCE(D(fake), 1),     L_policy = BCE(D(fake), 0),     2 log 2 where nothing can be told

Strided convolutions of 64 to 512 channels, as many as halve the latents down to 4 (PatchGAN; Isola et al., arXiv
1611.07004). Normalised over groups of channels and not over the batch: a row's verdict depends on no other row.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTHS = (64, 128, 256, 512)
SMALLEST = 4  # latents along a side that the last layer still sees


class Critic(nn.Module):
    """x_0 (B, C, h, w) -> logits (B, patches), positive for the concept."""

    def __init__(self, latent_shape: tuple[int, int, int], seed: int):
        super().__init__()
        channels, *sides = latent_shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed % 2**63)
            layers: list[nn.Module] = []
            for width in WIDTHS:
                if min(sides) < 2 * SMALLEST and layers:
                    break
                sides = [side // 2 for side in sides]
                layers += [nn.Conv2d(channels, width, 4, 2, 1), nn.GroupNorm(8, width), nn.LeakyReLU(0.2)]
                channels = width
            self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 1, 3, 1, 1))

    def forward(self, x0: Tensor) -> Tensor:
        return self.layers(x0.to(next(self.parameters()).dtype)).flatten(1)

    def says(self, x0: Tensor, concept: bool) -> Tensor:
        """(B,): the cross-entropy of calling these the concept, or the anchor; mean over patches."""
        logits = self(x0)
        return functional.softplus(-logits if concept else logits).mean(1)

    def save(self, folder: Path) -> None:
        """Writes critic.safetensors."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), folder / "critic.safetensors")
