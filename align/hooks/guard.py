"""The guard against reward hacking: watches what is not trained on, stops, keeps the best, recommends a strength.

    score = mean over held-out rewards of (mean r - mean r of the base) / (std r of the base)

on select prompts, the same noise each time. A measurement raises an alarm where the images themselves go astray: the
images of a prompt become alike, or their colour or fine detail leaves what the base draws. A measurement holds if it
raises no alarm and its score is not below the highest so far by more than one standard error of their difference,
paired over prompts (the one-standard-error rule of Breiman et al. 1984: a few prompts cannot tell closer ones apart).
The adapter of the last one that holds is the run's result; after `patience` measurements in a row that do not hold the
run ends. At the end the adapter's strength is swept, W0 + strength B A (Clark et al., arXiv 2309.17400, section 5.4,
scale the adapter by hand), on prompts apart from those that chose it: align/hooks/_sweep.py says what is recommended.

Judges that know the truth do not belong here: they are for the report.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from align.data._readable import readers
from align.data.prompts import load_prompts, problems, words
from align.hooks._base import Chosen, Hook, State, Surroundings
from align.hooks._measured import Base, Measurement, measured
from align.hooks._sweep import FEWEST, gain, recommended, standard_error
from align.hooks.drift import Drift, DriftConfig
from align.registry import ComponentConfig, LabelledRewards


class GuardConfig(ComponentConfig):
    """What is watched, and what follows. Each probe is switched off by null."""

    chooses: ClassVar[bool] = True  # the run's result: one hook may
    compares: ClassVar[bool] = True  # it with the role "reference"
    name: Literal["guard"] = "guard"
    prompts: list[str] | str
    """As in data.prompts: select prompts, none trained on and none reported on."""
    num_prompts: int = Field(16, ge=1)
    """The first so many."""
    num_seeds: int = Field(2, ge=1)
    """Images of each prompt."""
    rewards: LabelledRewards
    """Held-out rewards, {label: reward}: other networks than those trained on, differentiable or not."""
    every: int = Field(25, ge=1)
    """Updates between two measurements; one is also made before the first update and after the last."""
    patience: int | None = Field(3, ge=1)
    """Measurements in a row that do not hold before the run ends."""
    drift: int | None = Field(8, ge=1)
    """Number of prompts on which the drift from the reference is measured (hooks.drift)."""
    max_drift: float | None = Field(None, gt=0)
    """The drift above which an alarm is raised."""
    min_diversity: float | None = Field(0.5, ge=0, le=1)
    """An alarm is raised where a prompt's images differ by less than this share of what the base's do."""
    max_shift: float | None = Field(2.0, gt=0)
    """An alarm is raised where the mean chroma or detail is more than so many standard deviations of the base's images
    from the base's mean."""
    sweep: tuple[Annotated[float, Field(ge=0)], ...] = (0.25, 0.5, 0.75, 1.0, 1.25)
    """Strengths tried at the end, and 1; none: no sweep."""
    num_sweep_prompts: int = Field(16, ge=1)
    """Prompts of the sweep: those that follow the first num_prompts, since these have chosen the adapter. Where there
    are fewer than 4, the sweep is drawn on the first ones, and only strength 1 is recommended."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        count = self.num_prompts + self.num_sweep_prompts
        yield from problems(self.prompts, ".prompts", count, readers(recipe, self.rewards))
        for label, reward in self.rewards.items():
            if any(reward == trained for trained in recipe.get("rewards", {}).values()):
                yield f".rewards.{label}", "is trained on, so it rises whatever happens. Watch another reward."
        if not self.rewards:
            yield ".rewards", "are missing: the guard needs one that is not trained on. Add it, or remove the guard."


class Guard(Hook):
    """Adds guard/LABEL, guard/score, guard/chroma, guard/detail, guard/diversity and drift to the metrics."""

    Config = GuardConfig
    first = "guard: measures the base"

    def __init__(self, config: GuardConfig, around: Surroundings):
        self.config = config
        self.around = around
        self.last = "guard: tries the adapter's strengths" if config.sweep else ""
        wanted = config.num_prompts + config.num_sweep_prompts
        loaded = load_prompts(config.prompts, count=wanted, key="hooks.guard.prompts")
        prompts, apart = loaded[: config.num_prompts], loaded[config.num_prompts :]
        self.prompts = [prompt for prompt in prompts for _ in range(config.num_seeds)]
        chosen_on = set(map(words, prompts))
        apart = [p for p in dict.fromkeys(apart) if words(p) not in chosen_on]
        self.apart = [prompt for prompt in apart for _ in range(config.num_seeds)] if len(apart) >= FEWEST else []
        """What the sweep is judged on; none: nothing but strength 1 can be recommended."""
        self.rewards = around.build_rewards(config.rewards)
        asked = DriftConfig(prompts=prompts, num_prompts=config.drift or 1, every=config.every)
        self.drift = Drift(asked, around) if config.drift else None
        self.base: Base = {}
        self.best: Measurement | None = None
        """The one with the highest score of those without alarm, or that of the base."""
        self.held: tuple[Measurement, Chosen] | None = None
        """The last one that holds."""
        self.waited = 0
        """Measurements since then."""
        self.events: list[dict[str, Any]] = []
        self.seconds = 0.0

    def start(self, state: State) -> None:
        if state.step == 0:
            self._watch(state)
        elif self.held is not None:
            state.chosen = self.held[1]
            self._decide(state)  # a run that it had ended stays ended

    def after_update(self, state: State) -> None:
        if state.step % self.config.every == 0 or state.step == state.num_updates:
            self._watch(state)

    def conclude(self, state: State, poll: Callable[[], None]) -> dict[str, Any]:
        """The parameters in place are the chosen ones."""
        began = time.perf_counter()
        assert self.held is not None
        held, chosen = self.held
        swept: dict[str, Any] = {"sweep": []}
        if chosen.step > 0 and self.config.sweep and hasattr(self.around.trainable, "scaled"):
            swept = self._sweep(held, poll)  # else nothing is tried, and nothing said
        self.seconds += time.perf_counter() - began
        head = {"best_update": chosen.step, "best_score": held.score, "events": self.events}
        return {**head, **swept, "seconds": self.seconds}

    def _sweep(self, held: Measurement, poll: Callable[[], None]) -> dict[str, Any]:
        prompts, stream = (self.apart, "guard/sweep") if self.apart else (self.prompts, "guard")
        base = Base() if self.apart else self.base

        def seen(role: str) -> Measurement:
            around = self.around.painter, self.rewards
            return measured(self.config, *around, prompts, base, role=role, stream=stream, poll=poll)

        of_base = seen("reference") if self.apart else None
        found: dict[float, Measurement] = {}
        for strength in sorted({*self.config.sweep, 1.0}):
            if strength == 1 and not self.apart:
                found[strength] = held
                continue
            with self.around.trainable.scaled(strength):
                found[strength] = seen("result")
        said: dict[str, Any] = {"sweep": [{"strength": strength, **m.told()} for strength, m in found.items()]}
        said |= {"sweep_prompts": len(self.apart) // self.config.num_seeds, "recommended_strength": 1.0}
        if of_base is not None:
            best = said["recommended_strength"] = recommended(found, of_base)
            said["gain"] = gain(found[best], of_base, picked_among=1 if best == 1 else len(found) - 1)
        return said

    def _watch(self, state: State) -> None:
        began = time.perf_counter()
        if not self.base and (self.around.recipe.get("adapter") or {}).get("init"):  # the first adapter is not the base
            measured(self.config, self.around.painter, self.rewards, self.prompts, self.base, role="reference")
        with state.average():
            seen = self._measure()
            tensors = {name: value.cpu().clone() for name, value in self.around.trainable.state_dict().items()}
        if self.drift is not None and state.step:
            state.metrics["drift"] = self.drift.measure(state)
            if self.config.max_drift is not None and state.metrics["drift"] > self.config.max_drift:
                seen.alarms.append(f"the drift is {state.metrics['drift']:.3g}, above {self.config.max_drift:g}")
        values = {"score": seen.score, **seen.rewards, **seen.probes}
        state.metrics |= {f"guard/{name}": value for name, value in values.items()}
        self.events += [{"update": state.step, "event": alarm} for alarm in seen.alarms]
        if self.best is None or (not seen.alarms and seen.score > self.best.score):
            self.best = seen
        if seen is self.best or not (seen.alarms or seen.score < self.best.score - standard_error(seen, self.best)):
            self.held, self.waited = (seen, Chosen(state.step, tensors)), 0
            state.chosen = self.held[1]
        else:
            self.waited += 1
            if self._decide(state):
                self.events.append({"update": state.step, "event": state.stop})
        self.seconds += time.perf_counter() - began

    def _decide(self, state: State) -> bool:
        if self.config.patience is None or self.waited < self.config.patience or self.held is None:
            return False
        state.stop = (
            f"the guard: {self.waited} measurements in a row fell behind since update {self.held[1].step}, whose "
            "adapter is kept"
        )
        return True

    def _measure(self) -> Measurement:
        return measured(self.config, self.around.painter, self.rewards, self.prompts, self.base)

    def state_dict(self) -> dict[str, Any]:
        if self.best is None or self.held is None:
            return {}
        kept, chosen = self.held
        held = {"best": asdict(self.best), "held": asdict(kept), "step": chosen.step, "tensors": chosen.tensors}
        return held | {"base": self.base} | {"waited": self.waited, "events": self.events, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = Measurement(**state["best"])
        self.held = (Measurement(**state["held"]), Chosen(state["step"], state["tensors"]))
        self.base = {name: (mean, std) for name, (mean, std) in state["base"].items()}
        self.waited, self.events, self.seconds = state["waited"], list(state["events"]), state["seconds"]
