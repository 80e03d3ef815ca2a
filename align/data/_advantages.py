"""Advantages: how much better an image is than the others of its prompt, on a scale that rewards of all kinds share.

    A = (r - mean_p)/(std + 1e-4),  clipped to +-5         mean_p: over the group of the same prompt
    group     std over that group                           GRPO, Shao et al., arXiv 2402.03300
    global    std over all rows of the rollout              what Flow-GRPO's code does; for 0/1 rewards, whose group std
                                                            blows up prompts that are nearly always, or never, met
    running   mean and std over the last 32 rewards of the  DDPO's per-prompt tracking (arXiv 2305.13301, section 4.3)
              same text once there are 16, else over all

Standard deviations are those of a population (divided by n). Several rewards are normalised each, and A is the mean of
theirs under the rewards' weights, so that no reward's scale decides, and clipped last. A group whose rewards are all
equal has A = 0, but for `running`.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

Normalise = Literal["global", "group", "running"]
CONSTANT = 1e-4


def advantages(
    scores: Mapping[str, Tensor],
    weights: Mapping[str, float],
    groups: Tensor,
    *,
    normalise: Normalise,
    clip: float,
    running: "Running | None" = None,
    prompts: Sequence[str] = (),
) -> Tensor:
    """(n,) float64. scores: label -> (n,); groups: (n,), equal numbers are one group; running, prompts: see above."""
    total = torch.zeros(len(groups), dtype=torch.float64)
    for label, raw in scores.items():
        r = raw.double().cpu()
        if normalise == "running":
            assert running is not None
            mean, std = running.observe(label, r, prompts)
        else:
            mean, std = _of_groups(r, groups)
            std = r.std(correction=0).expand_as(r) if normalise == "global" else std
        total += weights[label] * (r - mean) / (std + CONSTANT)
    size = sum(abs(weights[label]) for label in scores)
    return (total / size).clamp(-clip, clip) if size else total


def without_contrast(scores: Mapping[str, Tensor], groups: Tensor) -> Tensor:
    """(n,) bool: whether every reward of a row is the same all over its group, which then teaches nothing."""
    flat = torch.ones(len(groups), dtype=torch.bool)
    for raw in scores.values():
        _, std = _of_groups(raw.double().cpu(), groups)
        flat &= std == 0
    return flat


def _of_groups(r: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, std) of each row's group, (n,) each; equal rewards have a std of exactly 0."""
    mean, std = torch.empty_like(r), torch.empty_like(r)
    for group in groups.unique():
        rows = groups == group
        alike = bool((r[rows] == r[rows][0]).all())
        mean[rows] = r[rows][0] if alike else r[rows].mean()
        std[rows] = 0.0 if alike else r[rows].std(correction=0)
    return mean, std


class Running:
    """The last rewards of every prompt's text, for each reward."""

    def __init__(self, size: int = 32, least: int = 16):
        self.size, self.least = size, least
        self._seen: dict[str, dict[str, deque[float]]] = {}

    def observe(self, label: str, r: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Takes the rewards r (n,) in and gives the (mean, std) that each is measured by."""
        queues = self._seen.setdefault(label, {})
        for prompt, value in zip(prompts, r.tolist(), strict=True):
            queues.setdefault(prompt, deque(maxlen=self.size)).append(value)
        means, stds = r.mean().repeat(len(r)), r.std(correction=0).repeat(len(r))
        for i, prompt in enumerate(prompts):
            if len(queues[prompt]) >= self.least:
                past = torch.tensor(list(queues[prompt]), dtype=torch.float64)
                means[i], stds[i] = past.mean(), past.std(correction=0)
        return means, stds

    def state_dict(self) -> dict[str, dict[str, list[float]]]:
        return {label: {prompt: list(past) for prompt, past in seen.items()} for label, seen in self._seen.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
        self._seen = {
            label: {prompt: deque(past, maxlen=self.size) for prompt, past in seen.items()}
            for label, seen in state.items()
        }
