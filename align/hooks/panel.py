"""A held-out panel: rewards that are watched and not trained on, on prompts of their own, and the best adapter by them.

The panel's prompts choose something (the best adapter), so results are reported on others: the select set here, the
report set in `evaluate`.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from align.data._readable import readers
from align.data.prompts import load_prompts, problems
from align.hooks._base import Chosen, Hook, State, Surroundings
from align.registry import ComponentConfig, LabelledRewards


class PanelConfig(ComponentConfig):
    """What is watched, and how often."""

    name: Literal["panel"] = "panel"
    prompts: list[str] | str
    """As in data.prompts; none of those trained on, none of those reported on."""
    num_prompts: int = Field(64, ge=1)
    """The first so many."""
    rewards: LabelledRewards
    """Label -> reward; differentiable or not."""
    best: str | None = None
    """The label by whose mean the best adapter is chosen; default: none is, and the last one is the run's result."""
    every: int = Field(25, ge=1)
    """Updates between two measurements; one is also made before the first update."""

    @property
    def chooses(self) -> bool:
        """Whether the run's result is picked here: one hook may."""
        return self.best is not None

    @model_validator(mode="after")
    def _known(self) -> "PanelConfig":
        if self.best is not None and self.best not in self.rewards:
            raise ValueError(f"best={self.best} is none of the panel's rewards: {', '.join(self.rewards)}.")
        return self

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield from problems(self.prompts, ".prompts", self.num_prompts, readers(recipe, self.rewards))


class Panel(Hook):
    """Adds panel/LABEL, the mean over the panel's prompts, to the metrics; the same noise each time."""

    Config = PanelConfig

    def __init__(self, config: PanelConfig, around: Surroundings):
        self.config = config
        self.around = around
        self.prompts = load_prompts(config.prompts, count=config.num_prompts, key="hooks.panel.prompts")
        self.rewards = around.build_rewards(config.rewards)
        self.best: tuple[float, Chosen] | None = None

    def start(self, state: State) -> None:
        if self.best is not None:
            state.chosen = self.best[1]
        if state.step == 0:
            self._measure(state)

    def after_update(self, state: State) -> None:
        if state.step % self.config.every == 0 or state.step == state.num_updates:
            self._measure(state)

    def _measure(self, state: State) -> None:
        with state.average():
            scores, _ = self.around.painter.score("result", self.prompts, self.rewards, stream="panel")
            means = {label: float(values.double().mean()) for label, values in scores.items()}
            state.metrics |= {f"panel/{label}": mean for label, mean in means.items()}
            if self.config.best is None or (self.best and means[self.config.best] <= self.best[0]):
                return
            tensors = {name: value.cpu().clone() for name, value in self.around.trainable.state_dict().items()}
        self.best = (means[self.config.best], Chosen(state.step, tensors))
        state.chosen = self.best[1]

    def state_dict(self) -> dict[str, Any]:
        if self.best is None:
            return {}
        return {"score": self.best[0], "step": self.best[1].step, "tensors": self.best[1].tensors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = (state["score"], Chosen(state["step"], state["tensors"])) if state else None
