"""Latents to tokens and back: each 2x2 neighbours are one token of four times the channels."""

from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle


def pack(x: Tensor) -> Tensor:
    """(B, C, 2h, 2w) -> (B, h w, 4C), channel slowest within a token, rows of tokens first."""
    return pixel_unshuffle(x, 2).flatten(2).mT


def unpack(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """(B, h w, 4C) -> (B, C, 2h, 2w): the inverse."""
    return pixel_shuffle(tokens.mT.unflatten(2, (rows, columns)), 2)
