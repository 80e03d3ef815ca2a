"""Several rewards as one: every raw term with its graph, and a strategy that combines them."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from rewards._base import Reward, check_scores
from rewards._errors import RewardError

Combine = Callable[[Mapping[str, Tensor]], Tensor]
"""{label: (B,)} -> (B,): how the raw terms become the one number that is trained."""


class WeightedSum:
    """total = sum_i w_i r_i, over the terms in `weights`."""

    def __init__(self, weights: Mapping[str, float]):
        self.weights = dict(weights)

    def __call__(self, terms: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([weight * terms[label] for label, weight in self.weights.items()]).sum(0)


class Composite(nn.Module):
    """Labelled rewards; a single reward is a composite of one.

    Calling it scores images (B, 3, H, W) in [0, 1] against B prompts and returns {label: (B,)}, raw and with graph;
    `combine` turns these into the total (B,). Every term is checked against the contract of a reward. Rewards choose
    their own precision: autocast is off here, and half-precision images are given to them as float32. A term that is
    not differentiable is computed without a graph.
    """

    def __init__(self, rewards: Mapping[str, Reward], combine: Combine | None = None):
        super().__init__()
        if not rewards:
            raise RewardError("a composite needs at least one reward.")
        self.rewards = nn.ModuleDict(rewards)
        self.combine = combine or WeightedSum({label: reward.config.weight for label, reward in rewards.items()})

    @property
    def differentiable(self) -> bool:
        """True when every term is."""
        return all(bool(reward.differentiable) for reward in self.rewards.values())

    def forward(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise RewardError(
                f"images of shape {tuple(images.shape)} and {images.dtype}: rewards take (B, 3, H, W) in [0, 1]."
            )
        if len(prompts) != len(images):
            raise RewardError(f"{len(images)} images came with {len(prompts)} prompts: one prompt an image.")
        if images.dtype in (torch.float16, torch.bfloat16):
            images = images.float()
        terms: dict[str, Tensor] = {}
        with torch.autocast(images.device.type, enabled=False):
            for label, reward in self.rewards.items():
                differentiable = bool(reward.differentiable)
                with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
                    scores = reward(images, prompts)
                    terms[label] = check_scores(scores, images, prompts, name=label, differentiable=differentiable)
        return terms
