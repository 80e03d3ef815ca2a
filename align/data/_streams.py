"""Endless streams of rows, each an epoch at a time in an order of its own, and which of them serves an update.

An order is fixed by (seed, stream, epoch) and the choice of a stream by (seed, update), so that what has been taken of
each stream is all that a source must remember.
"""

from collections.abc import Mapping, Sequence

import torch

from samplers import generator


class Streams:
    """{name: numbers of its rows}; `taken` is the state."""

    def __init__(self, seed: int, streams: Mapping[str, Sequence[int]]):
        self.seed, self.streams = seed, dict(streams)
        self.taken: dict[str, int] = {}
        self._orders: dict[str, tuple[int, list[int]]] = {}

    def take(self, name: str, count: int) -> list[int]:
        """The next `count` rows of a stream."""
        start = self.taken.get(name, 0)
        self.taken[name] = start + count
        return [self._row(name, start + i) for i in range(count)]

    def _row(self, name: str, place: int) -> int:
        rows = self.streams[name]
        epoch, position = divmod(place, len(rows))
        if self._orders.get(name, (-1, []))[0] != epoch:
            order = torch.randperm(len(rows), generator=generator(self.seed, f"order/{name}", epoch)).tolist()
            self._orders[name] = epoch, order
        return rows[self._orders[name][1][position]]


def chosen(sizes: Mapping[str, int], seed: int, step: int) -> str:
    """The name that serves update `step`, drawn in proportion to the sizes."""
    names = sorted(sizes)
    if len(names) == 1:
        return names[0]
    weights = torch.tensor([float(sizes[name]) for name in names])
    return names[int(weights.multinomial(1, generator=generator(seed, "bucket", step)))]
