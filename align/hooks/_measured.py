"""What the guard sees in the images of some prompts: held-out rewards, and signs that images go astray."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from align.hooks._probes import chroma, detail, spread

Base = dict[str, tuple[float, float]]
"""name -> (mean, std over images) of the rewards and probes of the base model."""


@dataclass
class Measurement:
    """What was seen after one update, or at one strength."""

    score: float
    rewards: dict[str, float]
    probes: dict[str, float]
    each: list[float]
    """The score of each prompt; their mean is `score`."""
    alarms: list[str] = field(default_factory=list)

    def told(self) -> dict[str, Any]:
        """As the summary holds it."""
        return {key: value for key, value in asdict(self).items() if key != "each"}


def measured(
    config: Any,
    painter: Any,
    rewards: Any,
    prompts: Sequence[str],
    base: Base,
    *,
    role: str = "result",
    stream: str = "guard",
    poll: Callable[[], None] = lambda: None,
) -> Measurement:
    """Of the parameters in place; `prompts` hold each prompt num_seeds times. An empty `base` is filled: the first
    measurement is what the others are compared with."""
    scores, images = painter.score(role, prompts, rewards, stream=stream, num_images=len(prompts), poll=poll)
    probes: dict[str, Tensor] = {}
    if config.max_shift is not None:
        probes |= {"chroma": chroma(images), "detail": detail(images)}
    if config.min_diversity is not None and config.num_seeds > 1:
        probes["diversity"] = spread(images.unflatten(0, (-1, config.num_seeds)))
    means = {name: float(values.double().mean()) for name, values in (scores | probes).items()}
    if not base:
        stds = {name: float(v.double().std(correction=0)) for name, v in (scores | probes).items()}
        base |= {name: (means[name], stds[name] or 1.0) for name in means}
    shifts = {name: (means[name] - mean) / std for name, (mean, std) in base.items()}
    gains = torch.stack([(v.double() - base[label][0]) / base[label][1] for label, v in scores.items()])
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
    if "diversity" in probes:
        share = means["diversity"] / (base["diversity"][0] or 1.0)
        if share < (config.min_diversity or 0):
            seen.alarms.append(f"the images of a prompt differ by {100 * share:.0f} % of what the base's do")
    return seen
