"""The grids of the families on a VP table, from their diffusers scheduler config."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from samplers import Grid, VPSchedule, grids

logger = logging.getLogger(__name__)
ON_DDIMS_GRID = ("ddim", "heavy_ball", "ghvb", "leapfrog")
UNKNOWN = ("use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
"""Spacings of diffusers' schedulers that no family here was published with."""


@dataclass(frozen=True)
class VPGrids:
    """The grids of a VP family, reproducing the diffusers scheduler of each step rule at this scheduler config."""

    schedule: VPSchedule
    config: Mapping[str, Any]

    def __post_init__(self) -> None:
        for name in UNKNOWN:
            if self.config.get(name):
                taken = self.config.get("timestep_spacing", "leading")
                logger.warning("the scheduler's %s is not followed: its steps are spaced %s here", name, taken)

    def __call__(self, num_steps: int, latent_shape: Sequence[int], step_rule: str, spacing: str | None = None) -> Grid:
        """`latent_shape` is part of the protocol for families whose times depend on it; not so here."""
        own_spacing: str = self.config.get("timestep_spacing", "leading")
        karras = self.config.get("use_karras_sigmas", False) and step_rule not in (*ON_DDIMS_GRID, "lcm")
        chosen: str = spacing or ("karras" if karras else own_spacing)
        offset = self.config.get("steps_offset", 0)
        if step_rule == "lcm":
            return grids.lcm(self.schedule, num_steps, original_steps=self.config.get("original_inference_steps", 50))
        if step_rule in ON_DDIMS_GRID:
            ends_at_zero = self.config.get("set_alpha_to_one", True)
            return grids.ddim(self.schedule, num_steps, chosen, offset=offset, ends_at_zero=ends_at_zero)
        if step_rule == "dpmpp_2m":
            if chosen == "karras":  # over the whole table, from unscaled noise
                whole = grids.euler(self.schedule, num_steps, "linspace")
                return Grid(grids.karras(self.schedule, whole).times)
            return grids.dpmpp(self.schedule, num_steps, chosen, offset=offset)
        if chosen == "karras":
            ends = grids.euler(self.schedule, num_steps, own_spacing, offset=offset)
            grid = grids.karras(self.schedule, ends)
        else:
            grid = grids.euler(self.schedule, num_steps, chosen, offset=offset)
        return grids.doubled(grid) if step_rule == "heun" else grid
