"""The grids of the families on a rectified flow, from their diffusers FlowMatchEulerDiscreteScheduler config."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from align.errors import UserError
from samplers import Grid, dynamic_shift, grids, shift


@dataclass(frozen=True)
class FlowGrids:
    """The scheduler's times; Euler's, DDIM's and DPM-Solver++'s are the same on a flow.

    patch: latents along each side of a token. ends_at_step: the times before the shift end at 1/N, where the family's
    pipeline passes them so, and not at the scheduler's least. factor: (tokens, num_steps) -> the shift, where it is not
    the scheduler's own.
    """

    config: Mapping[str, Any]
    patch: int = 1
    ends_at_step: bool = True
    factor: Callable[[int, int], float] | None = None

    def __call__(self, num_steps: int, latent_shape: Sequence[int], step_rule: str, spacing: str | None = None) -> Grid:
        if spacing is not None:
            raise UserError(f"sampling.spacing={spacing}: a flow model has times of its own. Remove it.")
        factor = self._factor(num_steps, latent_shape)
        end = None if self.ends_at_step else self._least()
        times = grids.flow(num_steps, factor=factor, end=end).times
        if terminal := self.config.get("shift_terminal"):
            times = torch.cat([_stretched(times[:-1], terminal), times[-1:]])
        return grids.doubled(Grid(times)) if step_rule == "heun" else Grid(times)

    def _factor(self, num_steps: int, latent_shape: Sequence[int]) -> float:
        if not self.config.get("use_dynamic_shifting", False):
            return self.config.get("shift", 1.0)
        tokens = (latent_shape[-2] // self.patch) * (latent_shape[-1] // self.patch)
        if self.factor is not None:
            return self.factor(tokens, num_steps)
        return dynamic_shift(
            tokens,
            base_tokens=self.config.get("base_image_seq_len", 256),
            max_tokens=self.config.get("max_image_seq_len", 4096),
            base_shift=self.config.get("base_shift", 0.5),
            max_shift=self.config.get("max_shift", 1.15),
        )

    def _least(self) -> float:
        """The scheduler's sigma_min, 1/T; where its shift is a constant it is shifted already, and is shifted again."""
        least = 1 / self.config.get("num_train_timesteps", 1000)
        if self.config.get("use_dynamic_shifting", False):
            return least
        return float(shift(torch.tensor(least, dtype=torch.float64), self.config.get("shift", 1.0)))


def _stretched(times: Tensor, terminal: float) -> Tensor:
    """The same start, the last time at `terminal`; linear in 1 - t. One time alone (1) stays."""
    gap = 1 - times[-1]
    return times if gap == 0 else 1 - (1 - times) * ((1 - terminal) / gap)


def rows_of_t(t: Tensor, x_t: Tensor, scale: float = 1.0) -> Tensor:
    """t, () or (B,) on any device -> scale t for each row of x_t, (B,) float32: what a network's embedding takes."""
    return (scale * t).to(x_t.device, torch.float32).expand(len(x_t))
