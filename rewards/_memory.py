"""A reward within a memory budget: batches in pieces, weights on the device only while they are used.

An image's score depends on that image alone, so the Jacobian of the scores (B,) is one gradient an image, and it can be
taken at once, piece by piece, in the forward pass:

    forward:   r_i(x_i) and g_i = dr_i/dx_i, after which the piece's graph is freed
    backward:  dL/dx_i = (dL/dr_i) g_i

So neither activations nor weights have to wait on the device for the backward pass, and nothing is computed twice.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rewards._errors import RewardError

Score = Callable[[Tensor, Sequence[str]], Tensor]


def within_memory(reward: Any, score: Score, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """score(images, prompts) with the pieces and the placement that the reward's config asks for."""
    home = next((p.device for p in [*reward.parameters(), *reward.buffers()]), images.device)
    if reward.config.offload:
        reward.to(images.device)
    try:
        wants_gradient = reward.differentiable and images.requires_grad and torch.is_grad_enabled()
        pieces = _pieces(reward, score, images, prompts, wants_gradient)
        if not wants_gradient:
            return torch.cat([score(part, texts) for part, texts in pieces])
        scores, gradients = zip(*(_with_gradient(reward.name, score, *piece) for piece in pieces), strict=True)
        return _Known.apply(images, torch.cat(scores), torch.cat(gradients))  # type: ignore[return-value]
    finally:
        if reward.config.offload:
            reward.to("cpu" if home == images.device else home)


def _pieces(
    reward: nn.Module, score: Score, images: Tensor, prompts: Sequence[str], wants_gradient: bool
) -> list[tuple[Tensor, list[str]]]:
    length = len(images)
    budget = reward.config.memory_gib  # type: ignore[union-attr]
    if budget is not None and length > 1:
        each = _bytes_of_one(reward, score, images[:1], list(prompts[:1]), wants_gradient)
        length = max(1, min(length, int(budget * 2**30 // max(each, 1))))  # type: ignore[operator]
    starts = range(0, len(images), length)
    return [(images[start : start + length], list(prompts[start : start + length])) for start in starts]


def _bytes_of_one(reward: nn.Module, score: Score, image: Tensor, prompts: list[str], wants_gradient: bool) -> int:
    """Bytes that one image's graph keeps for the backward pass, once for every image size; without a gradient a
    quarter of it, which is what the widest layer needs."""
    known: dict[Any, int] = reward.__dict__.setdefault("_bytes_of_one", {})
    size = tuple(image.shape[1:])
    if size not in known:
        weights = {p.untyped_storage().data_ptr() for p in [*reward.parameters(), *reward.buffers()]}
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            start = tensor.untyped_storage().data_ptr()
            if start not in weights:
                kept[start] = max(kept.get(start, 0), tensor.nbytes)
            return tensor

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            score(image.detach().requires_grad_(), prompts)
        known[size] = max(sum(kept.values()), image.nbytes)
    return known[size] if wants_gradient else known[size] // 4


def _with_gradient(name: str, score: Score, images: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    leaf = images.detach().requires_grad_()
    with torch.enable_grad():
        scores = score(leaf, prompts)
        if not scores.requires_grad:
            raise RewardError(
                f"reward {name} is silently detached: its images carry a gradient, its scores do not. Remove no_grad, "
                "detach, .item(), numpy or PIL from its way, or declare it not differentiable."
            )
        (gradient,) = torch.autograd.grad(scores.sum(), leaf)
    return scores.detach(), gradient


class _Known(torch.autograd.Function):
    """Scores whose gradient at the images is known already."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, scores: Tensor, gradients: Tensor) -> Tensor:
        ctx.save_for_backward(gradients)
        return scores

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (gradients,) = ctx.saved_tensors
        return grads[0].view(-1, 1, 1, 1) * gradients, None, None
