"""The steps' times by hand: `sampling.timesteps`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from align.errors import UserError

if TYPE_CHECKING:
    from samplers import Grid, Schedule


def by_hand(timesteps: Sequence[int], schedule: "Schedule", own: "Grid") -> "Grid":
    """The times of these entries of the table, and `own`'s last, where images end."""
    import torch

    from samplers import Grid, VPSchedule

    if not isinstance(schedule, VPSchedule):
        raise UserError("sampling.timesteps: this model has no table of times. Remove them.")
    if timesteps[0] >= schedule.num_train:
        last = schedule.num_train - 1
        raise UserError(
            f"sampling.timesteps={list(timesteps)}: the model's table ends at {last}. Begin there or lower."
        )
    return Grid(torch.cat([schedule.time(timesteps), own.times[-1:]]), own.init_scale)
