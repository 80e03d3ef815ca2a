"""Images that are latents still: what reads latents gets them as they are, and only what reads pixels has them decoded.

A reward that reads latents has `of_latents(latents, prompts)` and says by `knows(codec)` whose latents it reads; of any
other model's it reads the pixels, as every reward does.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor


class Decoder(Protocol):
    """What the latents are of."""

    def decode(self, x0: Tensor) -> Tensor: ...  # (B, C, h, w) -> (B, 3, H, W) in [0, 1]


@dataclass(frozen=True)
class Undecoded:
    """B images as latents."""

    x0: Tensor
    """(B, C, h, w)"""
    codec: Decoder
    """That of the model which made them."""
    decoder: Decoder | None = None
    """What makes pixels of them in its place."""

    def pixels(self) -> Tensor:
        """(B, 3, H, W) in [0, 1], with the graph of the latents."""
        return (self.decoder or self.codec).decode(self.x0)

    def at(self, x0: Tensor) -> "Undecoded":
        """Other latents of the same model."""
        return replace(self, x0=x0)

    def reader(self, reward: Any) -> Callable[..., Tensor] | None:
        """The reward's way of reading these latents, where it has one."""
        return reward.of_latents if hasattr(reward, "of_latents") and reward.knows(self.codec) else None
