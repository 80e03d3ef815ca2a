"""A rolling pool of scenes: latents, captions and what lies under each cell, always a part of them new.

Scenes come in chunks that their number decides alone. The window of chunks in use moves on with the updates, so a scene
is seen a few times and then never again, and a training that is stopped goes on with the same pictures.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from align.shapes.captions import say
from align.shapes.scene import Scene, render_batch
from scripts.pretrain import clip, text, vae
from scripts.pretrain.common import DEVICE, draw

CHUNK, PART = 2048, 256  # scenes of a chunk, and drawn at a time
Drawing = tuple[list[str], list[Scene], Tensor]  # captions, scenes, pictures


def right(count: int, *key: int, often: str | None = None) -> Drawing:
    """`count` random scenes, exactly drawn, each with a caption that is true of it; `often` as in `draw`."""
    wanted, scenes = draw(count, *key, often=often)
    return [say(r) for r in wanted], scenes, render_batch(scenes)


class Pool:
    """The newest `window` chunks; `fresh` new scenes come in per update, in whole chunks.

    latents (N, 4, 8, 8) scaled means, ids (N, LENGTH) of the captions, labels (N, 64, 2) of shape and colour.
    `show` draws scenes by their number and key.
    """

    def __init__(self, seed: int, window: int = 12, fresh: int = 16, show: Callable[..., Drawing] = right) -> None:
        self.seed, self.window, self.fresh, self.show = seed, window, fresh, show
        self.autoencoder = vae.load().to(DEVICE)
        self.chunks: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def _make(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        latents, labels, captions = [], [], []
        for k in range(CHUNK // PART):
            said, scenes, pictures = self.show(PART, self.seed, 30, number, k)
            with torch.no_grad():
                z = self.autoencoder.encode(pictures.to(DEVICE) * 2 - 1).latent_dist.mean
            latents.append(z * self.autoencoder.config["scaling_factor"])
            labels.append(clip.patch_labels(scenes))
            captions += said
        return torch.cat(latents), text.tokens(captions).to(DEVICE), torch.cat(labels).to(DEVICE)

    def batch(self, step: int, size: int, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """`size` random scenes of the window of this step: (latents, ids, labels)."""
        last = self.window - 1 + step * self.fresh // CHUNK
        numbers = range(last - self.window + 1, last + 1)
        for number in [n for n in self.chunks if n not in numbers]:
            del self.chunks[number]
        for number in numbers:
            if number not in self.chunks:
                self.chunks[number] = self._make(number)
        rows = torch.randint(self.window * CHUNK, (size,), generator=g)
        parts = [self.chunks[numbers[row // CHUNK]] for row in rows.tolist()]
        picked = zip(parts, (rows % CHUNK).tolist(), strict=True)
        z, ids, labels = zip(*[(part[0][i], part[1][i], part[2][i]) for part, i in picked], strict=True)
        return torch.stack(z), torch.stack(ids), torch.stack(labels)
