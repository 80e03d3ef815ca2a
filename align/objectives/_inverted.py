"""Images taken to noise by the reference: deterministic DDIM inversion, kept on disk beside the latents."""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from align.policy import Policy
from align.registry import ComponentConfig
from samplers import cfg, invert


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

    The image is the mean of the autoencoder's posterior. A pair that is on disk already is not inverted again.
    """
    model, count = policy.model, len(batch)
    mean = pairs.winner.mean
    grid = model.grids(config.num_steps, mean.shape[1:], "ddim", None)
    store = batch.store("inverted", config.model_dump(mode="json"))
    keys = batch.keys
    if store is not None and any(key not in store for key in keys):
        store.scan()  # what the other processes have written
    missing = [i for i, key in enumerate(keys) if store is None or key not in store]
    made: dict[int, Tensor] = {}
    if missing:
        cond_w, cond_l = pairs.conds([False] * count)
        rows = torch.tensor(missing, device=mean.device)
        uncond_w, uncond_l = pairs.conds([True] * count)
        uncond = uncond_w[missing].cat(uncond_l[missing])
        denoiser = cfg(policy.role("reference"), uncond, config.guidance_scale)
        x0 = torch.cat([mean[rows], pairs.loser.mean[rows]])
        cond = cond_w[missing].cat(cond_l[missing])
        found = invert(denoiser, x0, grid, cond, iterations=config.iterations)
        states = torch.stack(found.states)
        made = {i: states[:, [j, len(missing) + j]] for j, i in enumerate(missing)}
        if store is not None:
            store.write({keys[i]: {"states": state} for i, state in made.items()})
    both = [made[i] if i in made else store.read(key)["states"].to(mean) for i, key in enumerate(keys)]  # type: ignore[union-attr]
    return grid.times.flip(0), torch.cat([torch.stack([s[:, side] for s in both], 1) for side in (0, 1)], 1)
