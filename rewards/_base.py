"""A reward: images in [0, 1] and their prompts -> one score an image, higher is better; frozen, always in eval mode."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rewards._config import RewardConfig
from rewards._errors import RewardError
from rewards._memory import within_memory


class Reward(nn.Module):
    """Base of every reward: subclasses set `Config`, build their networks in `__init__` and score in `forward`.

    Networks assigned to a reward are frozen and stay in eval mode, whatever `train()` the surrounding code calls.
    `name`, `differentiable` and `licence` belong to the instance: they depend on its config. `licence` is that of the
    weights and the code behind the score, for the card of what is trained on it.
    """

    Config: ClassVar[type[RewardConfig]]

    def __init__(self, config: RewardConfig, *, licence: str | None = None, name: str | None = None):
        super().__init__()
        self.config = config
        self.licence = licence or config.licence_text()
        self.name = name if name is not None else str(getattr(config, "name", type(self).__name__))
        self.differentiable = config.has_gradient()

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] and B prompts -> scores (B,), higher is better."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(images, prompts)")

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """`forward`, within the memory that the config allows."""
        if self.config.memory_gib is None and not self.config.offload:
            return super().__call__(images, prompts)
        return within_memory(self, super().__call__, images, prompts)

    def try_out(self, label: str, prompts: Sequence[str], device: torch.device) -> None:
        """Raises RewardError where the contract is broken; only of rewards that are somebody's own."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, nn.Module):
            value.requires_grad_(False).eval()
        elif isinstance(value, nn.Parameter):
            value.requires_grad_(False)
        super().__setattr__(name, value)

    def train(self, mode: bool = True) -> "Reward":
        """Stays in eval mode: dropout or batch statistics would make the score depend on more than the image."""
        return super().train(False)


def check_scores(scores: Any, images: Tensor, prompts: Sequence[str], *, name: str, differentiable: bool) -> Tensor:
    """`scores` if they keep a reward's contract for these images; otherwise a RewardError that names the reward."""
    batch = len(images)
    if not isinstance(scores, Tensor):
        told, array = type(scores).__name__, differentiable and "numpy" in type(scores).__module__
        more = " numpy breaks the gradient: stay in torch." if array else ""
        raise RewardError(f"reward {name} returned {told}; return a tensor of shape ({batch},).{more}")
    if scores.ndim == 0:
        raise RewardError(
            f"reward {name} returned a scalar for {batch} images; return one score an image, shape ({batch},): "
            "do not average over the batch."
        )
    if scores.shape != (batch,):
        raise RewardError(
            f"reward {name} returned shape {tuple(scores.shape)} for {batch} images; return one score an image, "
            f"shape ({batch},)."
        )
    if not scores.is_floating_point():
        raise RewardError(f"reward {name} returned {scores.dtype}; return floating-point scores.")
    if scores.device != images.device:
        raise RewardError(
            f"reward {name} returned scores on {scores.device} for images on {images.device}; compute and return them "
            "on the images' device."
        )
    finite = scores.detach().isfinite()
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise RewardError(
            f"reward {name} returned {scores[row].item()} for image {row} of {batch} (prompt {prompts[row]!r}); every "
            "score must be a finite number."
        )
    if differentiable and torch.is_grad_enabled() and images.requires_grad and not scores.requires_grad:
        raise RewardError(
            f"reward {name} is silently detached: its images carry a gradient, its scores do not. Remove no_grad, "
            "detach, .item(), numpy or PIL from its way, or declare it not differentiable."
        )
    return scores
