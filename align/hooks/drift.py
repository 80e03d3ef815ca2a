"""How far the network has moved: |out - out_ref|^2, mean over dimensions, on the reference's own trajectories.

The states are those of the reference's samples of a few fixed prompts, so that the measure sees the same inputs for the
whole run, and its reference half is computed once.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from align.data.prompts import load_prompts, problems
from align.hooks._base import Hook, State, Surroundings
from align.processes import broadcast_object_list
from align.registry import ComponentConfig
from align.sampling import SamplingConfig, rollout
from samplers import Rng, generator


class DriftConfig(ComponentConfig):
    """On how many prompts and times the drift is measured, and how often."""

    compares: ClassVar[bool] = True  # with the role "reference"
    name: Literal["drift"] = "drift"
    prompts: list[str] | str
    """As in data.prompts."""
    num_prompts: int = Field(8, ge=1)
    """The first so many."""
    num_times: int = Field(default=3, ge=1)
    """Evenly chosen steps of the sampling grid."""
    every: int = Field(25, ge=1)
    """Updates between two measurements."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield from problems(self.prompts, ".prompts")


class Drift(Hook):
    """Adds "drift" to the metrics. Unguided outputs: guidance would multiply the drift by its scale."""

    Config = DriftConfig

    def __init__(self, config: DriftConfig, around: Surroundings):
        self.config = config
        self.painter = around.painter
        self.seed = around.seed
        self.prompts = load_prompts(config.prompts, count=config.num_prompts, key="hooks.drift.prompts")
        self._points: list[Point] = []

    def after_update(self, state: State) -> None:
        if state.step % self.config.every == 0:
            state.metrics["drift"] = self.measure(state)

    def measure(self, state: State) -> float:
        """The drift now; the same on every process."""
        policy = self.painter.policy
        with torch.no_grad(), policy.uncounted(), state.average():
            if not self._points:
                self._points = points(policy, self.painter.sampling, self.prompts, self.seed, self.config.num_times)
            found = [float(gaps(policy, self.prompts, self._points).mean())]
        return broadcast_object_list(found)[0]  # the main process's: an alarm must be one on all


Point = tuple[Tensor, Tensor, Tensor]
"""x_t (B, C, h, w), t, the reference's output there."""


def points(policy: Any, sampling: SamplingConfig, prompts: Sequence[str], seed: int, num_times: int) -> list[Point]:
    """`num_times` evenly chosen steps of the trajectories that the policy's reference takes from seeded noise."""
    reference = policy.role("reference")
    rng = Rng(generator(seed, "drift", 0).initial_seed(), range(len(prompts)))
    path = rollout(sampling, policy.model, reference, prompts, rng, keep="states")
    count = len(path.times) - 1
    chosen = sorted({round((i + 0.5) * count / num_times - 0.5) for i in range(num_times)})
    cond = policy.model.text.encode(prompts)
    return [(path.states[i], path.times[i], reference(path.states[i], path.times[i], cond)) for i in chosen]


def gaps(policy: Any, prompts: Sequence[str], points: Sequence[Point]) -> Tensor:
    """(B,) each prompt's |out - out_ref|^2, mean over dimensions and points."""
    cond, train = policy.model.text.encode(prompts), policy.role("result" if policy.roles["result"] else "train")
    return torch.stack([(train(x, t, cond) - out).square().flatten(1).mean(1) for x, t, out in points]).mean(0)
