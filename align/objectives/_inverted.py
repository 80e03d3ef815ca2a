"""Images taken to noise by the reference: deterministic DDIM inversion, kept on disk beside the latents."""

import hashlib
import sys
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from align.models._identity import files
from align.policy.roles import Policy
from align.registry import ComponentConfig
from samplers import cfg, invert

_CODE = files(sys.modules[__name__], sys.modules[cfg.__module__], sys.modules[invert.__module__])


class InversionConfig(ComponentConfig):
    """How images are inverted."""

    num_steps: int = Field(default=20, ge=2)
    """N, steps of the grid (the paper: 80)."""
    guidance_scale: float = Field(default=1.0, ge=0)
    """Guidance of the reference (the released code: 2)."""
    iterations: int = Field(default=0, ge=0)
    """Fixed-point iterations a step, for an exact inversion; 0 is plain DDIM inversion."""


@torch.no_grad()
def trajectories(config: InversionConfig, policy: Policy, batch: Any, pairs: Any) -> tuple[Tensor, Tensor]:
    """(times (N + 1,) float64 from data to noise, states (N + 1, 2 b, C, h, w), winners first).

    The image is the mean of the autoencoder's posterior. One that is on disk already is not inverted again, whichever
    pair of its prompt it came in.
    """
    model, undropped = policy.model, [False] * len(batch)
    mean = torch.cat([pairs.winner.mean, pairs.loser.mean])
    grid = model.grids(config.num_steps, mean.shape[1:], "ddim", None)
    settings = [config.model_dump(mode="json"), grid.times.tolist(), float(grid.init_scale), _CODE]
    store = batch.store("inversions", settings)
    keys = _keys(mean, 2 * batch.prompts) if store is not None else [str(i) for i in range(len(mean))]
    if store is not None and any(key not in store for key in keys):
        store.scan()  # what the other processes have written
    missing = {key: i for i, key in enumerate(keys) if store is None or key not in store}
    made: dict[str, Tensor] = {}
    if missing:
        rows = list(missing.values())
        cond_w, cond_l = pairs.conds(undropped)
        uncond_w, uncond_l = pairs.conds([True] * len(batch))
        role, uncond = policy.role("reference"), uncond_w.cat(uncond_l)[rows]
        denoiser = cfg(role, uncond, config.guidance_scale, rescale=getattr(role, "rescale", None))
        found = invert(denoiser, mean[rows], grid, cond_w.cat(cond_l)[rows], iterations=config.iterations)
        made = dict(zip(missing, torch.stack(found.states).unbind(1), strict=True))
        if store is not None:
            store.write({key: {"states": states} for key, states in made.items()})
    if store is not None:
        made |= {key: store.read(key)["states"].to(mean) for key in set(keys) - made.keys()}
    return grid.times.flip(0), torch.stack([made[key] for key in keys], 1)


def _keys(mean: Tensor, prompts: Sequence[str]) -> list[str]:
    """What the inversion of each image depends on beside the network and the settings, as text."""
    rows = mean.detach().cpu().contiguous().flatten(1).view(torch.uint8).numpy()
    return [
        hashlib.blake2b(row.tobytes() + prompt.encode(), digest_size=12).hexdigest()
        for row, prompt in zip(rows, prompts, strict=True)
    ]
