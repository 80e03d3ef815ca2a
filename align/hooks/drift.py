"""How far the network has moved: |out - out_ref|^2, mean over dimensions, on the reference's own trajectories.

The states are those of the reference's samples of a few fixed prompts, so that the measure sees the same inputs for the
whole run, and its reference half is computed once.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from align.data.prompts import load_prompts, problems
from align.hooks._base import Hook, State, Surroundings
from align.registry import ComponentConfig
from align.sampling import rollout
from samplers import Rng, generator


class DriftConfig(ComponentConfig):
    """On how many prompts and times the drift is measured, and how often."""

    name: Literal["drift"] = "drift"
    prompts: list[str] | str
    """As in data.prompts."""
    num_prompts: int = Field(8, ge=1)
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
        self._points: list[tuple[Tensor, Tensor, Tensor]] = []

    def after_update(self, state: State) -> None:
        if state.step % self.config.every == 0:
            state.metrics["drift"] = self.measure(state)

    def measure(self, state: State) -> float:
        """The drift now; the same on every process."""
        policy = self.painter.policy
        with torch.no_grad(), policy.uncounted(), state.average():
            cond = policy.model.text.encode(self.prompts)
            train = policy.role("train")
            gaps = [(train(x, t, cond) - out).square().mean() for x, t, out in self._reference(policy, cond)]
        return float(torch.stack(gaps).mean())

    def _reference(self, policy: Any, cond: Any) -> list[tuple[Tensor, Tensor, Tensor]]:
        """[(x_t, t, the reference's output)], computed at the first use."""
        if not self._points:
            reference = policy.role("reference")
            rng = Rng(generator(self.seed, "drift", 0).initial_seed(), range(len(self.prompts)))
            path = rollout(self.painter.sampling, policy.model, reference, self.prompts, rng, keep="states")
            count = len(path.times) - 1
            chosen = sorted(
                {round((i + 0.5) * count / self.config.num_times - 0.5) for i in range(self.config.num_times)}
            )
            points = [(path.states[i], path.times[i]) for i in chosen]
            self._points = [(x, t, reference(x, t, cond)) for x, t in points]
        return self._points
