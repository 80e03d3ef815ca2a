"""Latents to tokens and back: each 2x2 neighbours are one token of four times the channels."""

from torch import Tensor


def pack(x: Tensor) -> Tensor:
    """(B, C, 2h, 2w) -> (B, h w, 4C), channel slowest within a token."""
    return x.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """(B, h w, 4C) -> (B, C, 2h, 2w): the inverse."""
    x = tokens.unflatten(1, (rows, columns)).unflatten(-1, (-1, 2, 2))
    return x.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
