"""Randomness as an argument: per-sample noise from (seed, stream, global sample index), shared draws from (seed, step).

A sample's noise does not depend on the batch it lands in, the rank that computes it or the device it goes to, so that a
resumed run, another batch split and another number of processes see the same numbers. What a batch decides together (a
random gradient window, ReFL's m) must come out alike on every rank, so it depends on the seed and the step only.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def noise(seed: int, stream: str, indices: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal noise on the CPU, one row per global sample index: (len(indices), *shape), float32."""
    if len(indices) == 0:
        return torch.empty(0, *shape)
    return torch.stack([torch.randn(*shape, generator=generator(seed, stream, int(index))) for index in indices])


def generator(seed: int, stream: str, number: int) -> torch.Generator:
    """The CPU generator of one (seed, stream, number): a sample's index, or the step of a shared draw."""
    digest = hashlib.blake2b(f"{seed}/{stream}/{number}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


@dataclass(frozen=True)
class Rng:
    """The randomness of one batch: its seed, the global sample index of each row, and the number of the update."""

    seed: int
    indices: Sequence[int]
    step: int = 0

    def normal(self, stream: str, like: Tensor) -> Tensor:
        """Standard normal noise for each row of `like` (B, ...), in its dtype and on its device."""
        if len(self.indices) != len(like):
            raise ValueError(f"{len(self.indices)} sample indices for a batch of {len(like)} rows")
        drawn = noise(self.seed, stream, self.indices, like.shape[1:])
        return drawn.to(device=like.device, dtype=like.dtype, non_blocking=True)

    def shared(self, stream: str) -> torch.Generator:
        """A generator for what the whole batch, on every rank, decides alike at this update."""
        return generator(self.seed, f"shared/{stream}", self.step)
