"""The guard against reward hacking: watches what is not trained on, stops, keeps the best, recommends a strength.

    score = mean over held-out rewards of (mean r - mean r of the base) / (std r of the base)

on select prompts, the same noise each time. A measurement raises an alarm where the images themselves go astray: the
images of a prompt become alike, or their colour or fine detail leaves what the base draws. A measurement holds if it
raises no alarm and its score is not below the highest so far by more than one standard error of their difference,
paired over prompts (the one-standard-error rule of Breiman et al. 1984: a few prompts cannot tell closer ones apart).
The adapter of the last one that holds is the run's result; after `patience` measurements in a row that do not hold the
run ends. At the end the adapter's strength is swept: W0 + strength B A, 1 unless another strength without alarm is
better by more than a standard error (Clark et al., arXiv 2309.17400, section 5.4, scale the adapter by hand).

Judges that know the truth do not belong here: they are for the report.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from statistics import stdev
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from align.data.prompts import load_prompts, problems
from align.hooks._base import Chosen, Hook, State, Surroundings
from align.hooks._probes import chroma, detail, spread
from align.hooks.drift import Drift, DriftConfig
from align.registry import ComponentConfig, LabelledRewards


class GuardConfig(ComponentConfig):
    """What is watched, and what follows. Each probe is switched off by null."""

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
    sweep: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.25)
    """Strengths tried at the end; none: no sweep."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield from problems(self.prompts, ".prompts")
        for label, reward in self.rewards.items():
            if any(reward == trained for trained in recipe.get("rewards", {}).values()):
                yield f".rewards.{label}", "is trained on, so it rises whatever happens. Watch another reward."
        if not self.rewards:
            yield ".rewards", "are missing: the guard needs one that is not trained on. Add it, or remove the guard."


@dataclass
class Measurement:
    """What was seen after one update, or at one strength."""

    score: float
    rewards: dict[str, float]
    probes: dict[str, float]
    each: list[float]
    """The score of each prompt; their mean is `score`."""
    alarms: list[str] = field(default_factory=list)


def standard_error(a: Measurement, b: Measurement) -> float:
    """Of the difference of two scores, paired over prompts; 0 where there is one prompt."""
    differences = [x - y for x, y in zip(a.each, b.each, strict=True)]
    return stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else 0.0


def recommended(sweep: Mapping[float, Measurement]) -> float:
    """1, or the strength without alarm that scores best where it beats 1 by more than a standard error."""
    sound = {strength: seen for strength, seen in sweep.items() if not seen.alarms}
    if not sound:
        return 1.0
    best = max(sound, key=lambda strength: sound[strength].score)
    if 1.0 in sound and sound[best].score <= sound[1.0].score + standard_error(sound[best], sound[1.0]):
        return 1.0
    return best


def _told(seen: Measurement) -> dict[str, Any]:
    return {key: value for key, value in asdict(seen).items() if key != "each"}


class Guard(Hook):
    """Adds guard/LABEL, guard/score, guard/chroma, guard/detail, guard/diversity and drift to the metrics."""

    Config = GuardConfig

    def __init__(self, config: GuardConfig, around: Surroundings):
        self.config = config
        self.around = around
        prompts = load_prompts(config.prompts, count=config.num_prompts, key="hooks.guard.prompts")
        self.prompts = [prompt for prompt in prompts for _ in range(config.num_seeds)]
        self.rewards = around.build_rewards(config.rewards)
        asked = DriftConfig(prompts=prompts, num_prompts=config.drift or 1, every=config.every)
        self.drift = Drift(asked, around) if config.drift else None
        self.base: dict[str, tuple[float, float]] = {}
        """name -> (mean, std over images) of the rewards and probes before training."""
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
        found: dict[float, Measurement] = {}
        if chosen.step > 0 and hasattr(self.around.trainable, "scaled"):
            for strength in self.config.sweep:
                with self.around.trainable.scaled(strength):
                    found[strength] = held if strength == 1 else self._measure(poll)
        self.seconds += time.perf_counter() - began
        return {
            "best_update": chosen.step,
            "best_score": held.score,
            "events": self.events,
            "sweep": [{"strength": strength, **_told(m)} for strength, m in sorted(found.items())],
            **({"recommended_strength": recommended(found)} if found else {}),  # nothing tried, nothing said
            "seconds": self.seconds,
        }

    def _watch(self, state: State) -> None:
        began = time.perf_counter()
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

    def _measure(self, poll: Callable[[], None] = lambda: None) -> Measurement:
        """Of the parameters in place. The first measurement is what the others are compared with."""
        number = len(self.prompts)
        painter, config = self.around.painter, self.config
        scores, images = painter.score(
            "train", self.prompts, self.rewards, stream="guard", num_images=number, poll=poll
        )
        probes: dict[str, Tensor] = {}
        if config.max_shift is not None:
            probes |= {"chroma": chroma(images), "detail": detail(images)}
        if config.min_diversity is not None and config.num_seeds > 1:
            probes["diversity"] = spread(images.unflatten(0, (-1, config.num_seeds)))
        means = {name: float(values.double().mean()) for name, values in (scores | probes).items()}
        if not self.base:
            stds = {name: float(v.double().std(correction=0)) for name, v in (scores | probes).items()}
            self.base = {name: (means[name], stds[name] or 1.0) for name in means}
        shifts = {name: (means[name] - mean) / std for name, (mean, std) in self.base.items()}
        gains = torch.stack([(v.double() - self.base[label][0]) / self.base[label][1] for label, v in scores.items()])
        seen = Measurement(
            score=sum(shifts[label] for label in scores) / len(scores),
            each=gains.mean(0).unflatten(0, (-1, config.num_seeds)).mean(1).tolist(),
            rewards={label: means[label] for label in scores},
            probes={name: means[name] for name in probes},
        )
        seen.alarms = [
            f"{name} is {means[name]:.3g}, {abs(shifts[name]):.1f} standard deviations from the base's"
            for name in ("chroma", "detail")
            if name in probes and config.max_shift is not None and abs(shifts[name]) > config.max_shift
        ]
        if "diversity" in probes and (share := means["diversity"] / (self.base["diversity"][0] or 1.0)) < (
            config.min_diversity or 0
        ):
            seen.alarms.append(f"the images of a prompt differ by {100 * share:.0f} % of what the base's do")
        return seen

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
