"""Several rewards as one: every raw term with its graph, and a total whose gradient is put together at the pixels."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from rewards._base import Reward, check_scores
from rewards._combine import CombineConfig, Normaliser, coefficients, gram
from rewards._errors import RewardError
from rewards._latents import Undecoded
from rewards._numerals import counted


class Scored(NamedTuple):
    """Images that were scored for training."""

    terms: dict[str, Tensor]
    """label -> raw scores (B,), without graph."""
    total: Tensor
    """(B,); its gradient reaches the images, or the latents, if they carry one."""
    metrics: dict[str, Tensor]
    """With two rewards or more, (B,) each: pixel_grad/LABEL, the norm of d(w_i r_i/s_i)/d pixels, and cosine/A/B
    between those of two (latent_grad/LABEL where a reward reads latents). A negative cosine: what pleases one of the
    two displeases the other. Where a reward's score is finite and its gradient is not: gradient_not_finite/LABEL, 1 at
    the images where that is so."""


class Composite(nn.Module):
    """Labelled rewards; a single reward is a composite of one.

    Calling it scores images (B, 3, H, W) in [0, 1] against B prompts and returns {label: (B,)}, raw and with graph;
    `combine` turns these into the total (B,); `score` does both, with the gradient that `config.gradients` asks for.
    Every term is checked against the contract of a reward. Rewards choose their own precision: autocast is off here,
    and half-precision images are given to them as float32. A term that is not differentiable has no graph.
    Images may be latents still (`Undecoded`): they are decoded where a reward reads pixels, and otherwise never.
    """

    def __init__(self, rewards: Mapping[str, Reward], config: CombineConfig | None = None):
        super().__init__()
        if not rewards:
            raise RewardError("a composite needs at least one reward.")
        self.rewards = nn.ModuleDict(rewards)
        for label, reward in rewards.items():
            reward.name = label  # messages say what the recipe calls it
        self.config = config or CombineConfig()
        self.weights = {label: reward.config.weight for label, reward in rewards.items()}
        self.normaliser = Normaliser(self.config, list(rewards))

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """As nn.Module's, of the rewards that stay where they are put: an off-loaded one comes when it is asked."""
        for reward in self.rewards.values():
            if not reward.config.offload:  # type: ignore[union-attr]  # every reward has a config
                reward.to(*args, **kwargs)
        return self

    @property
    def differentiable(self) -> bool:
        """True when every term is."""
        return all(bool(reward.differentiable) for reward in self.rewards.values())

    def forward(self, images: Tensor | Undecoded, prompts: Sequence[str]) -> dict[str, Tensor]:
        given = images.x0 if isinstance(images, Undecoded) else images
        if len(prompts) != len(given):
            raise RewardError(
                f"{counted(len(given), 'image')} came with {counted(len(prompts), 'prompt')}: one prompt an image."
            )
        terms: dict[str, Tensor] = {}
        with torch.autocast(given.device.type, enabled=False):
            for label, (reader, seen) in self._readings(images).items():
                differentiable = bool(self.rewards[label].differentiable)
                with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
                    scores = reader(seen, prompts)
                    terms[label] = check_scores(scores, seen, prompts, name=label, differentiable=differentiable)
        return terms

    def _readings(self, images: Tensor | Undecoded) -> dict[str, tuple[Any, Tensor]]:
        """label -> what is called, and on what: the pixels, or the latents where a reward reads these."""
        found: dict[str, tuple[Any, Tensor]] = {}
        pixels = None if isinstance(images, Undecoded) else _checked(images)
        for label, reward in self.rewards.items():
            if isinstance(images, Undecoded) and (reader := images.reader(reward)) is not None:
                found[label] = reader, _wide(images.x0)
                continue
            if pixels is None:
                pixels = _checked(images.pixels())  # type: ignore[union-attr]  # a tensor's are there already
            found[label] = reward, pixels
        return found

    def try_out(self, prompts: Sequence[str], device: torch.device) -> None:
        """Rewards that are somebody's own are tried on `device`, so that a broken contract is a RewardError before a
        model is loaded. `prompts`: those that they will score, as far as they are known."""
        rewards: Mapping[str, Any] = dict(self.rewards.items())
        for label, reward in rewards.items():
            reward.try_out(label, prompts, device)

    def combine(self, terms: Mapping[str, Tensor]) -> Tensor:
        """{label: (B,)} -> sum_i w_i (r_i - m_i)/s_i, (B,)."""
        return torch.stack([self._scaled(label, scores) for label, scores in terms.items()]).sum(0)

    def score(self, images: Tensor | Undecoded, prompts: Sequence[str]) -> Scored:
        """Each reward's gradient is taken at the pixels, one reward after another; then g, what they make together,
        replaces the rewards in the graph: d total/d images = g. So one backward pass through the network that drew the
        images serves all rewards, and no reward's graph has to wait for it. Where a reward reads latents, all of it
        happens at the latents, and those that read pixels share one decoding."""
        reading = isinstance(images, Undecoded) and any(images.reader(r) is not None for r in self.rewards.values())
        if isinstance(images, Undecoded) and not reading:
            images = images.pixels()
        given = images.x0 if isinstance(images, Undecoded) else images
        if not (given.requires_grad and torch.is_grad_enabled()):
            terms = self(images, prompts)
            return Scored({label: scores.detach() for label, scores in terms.items()}, self.combine(terms), {})
        given = given if given.dtype in (torch.float32, torch.float64) else given.float()
        place = given.detach().requires_grad_()
        terms = self(images.at(place) if isinstance(images, Undecoded) else place, prompts)
        gradients = torch.stack([self._at(place, label, scores, again=reading) for label, scores in terms.items()])
        raw = {label: scores.detach() for label, scores in terms.items()}
        finite = gradients.flatten(2).isfinite().all(-1)  # (rewards, B)
        bad = {f"gradient_not_finite/{n}": (~f).float() for n, f in zip(raw, finite, strict=True) if not bool(f.all())}
        metrics: dict[str, Tensor] = {}
        if len(raw) > 1:
            products = gram(gradients)
            metrics = _described(list(raw), products, "latent_grad" if reading else "pixel_grad")
            chosen = coefficients(self.config.gradients, products, list(self.weights.values()))
            gradients = gradients * chosen.T.to(gradients).view(*chosen.T.shape, 1, 1, 1)
        total: Tensor = _Total.apply(given, self.combine(raw), gradients.sum(0))  # type: ignore[assignment]
        return Scored(raw, total, metrics | bad)

    def _scaled(self, label: str, scores: Tensor) -> Tensor:
        mean, std = self.normaliser.scale(label)
        return self.weights[label] * (scores - mean) / std

    def _at(self, place: Tensor, label: str, scores: Tensor, *, again: bool = False) -> Tensor:
        """d(w_i r_i/s_i)/d pixels, (B, 3, H, W); an image's score depends on that image only. `again`: what led there
        is gone through once more."""
        scaled = self._scaled(label, scores).sum()
        (gradient,) = torch.autograd.grad(scaled, place, retain_graph=again, materialize_grads=True)
        return gradient


def _checked(images: Tensor) -> Tensor:
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise RewardError(
            f"images of shape {tuple(images.shape)} and {images.dtype}: rewards take (B, 3, H, W) in [0, 1]."
        )
    return _wide(images)


def _wide(images: Tensor) -> Tensor:
    return images.float() if images.dtype in (torch.float16, torch.bfloat16) else images


class _Total(torch.autograd.Function):
    """images (B, ...), total (B,), g (B, ...) -> total, whose gradient at the images is g: finite where it is, though
    the gradient of another image is not."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, total: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return total.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0].to(gradient).view(-1, *[1] * (gradient.ndim - 1)), None, None


def _described(labels: Sequence[str], products: Tensor, what: str) -> dict[str, Tensor]:
    norms = products.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
    said = {f"{what}/{label}": norms[:, i].float() for i, label in enumerate(labels)}
    for i, j in combinations(range(len(labels)), 2):
        cosine = products[:, i, j] / (norms[:, i] * norms[:, j]).clamp(min=1e-30)
        said[f"cosine/{labels[i]}/{labels[j]}"] = cosine.float()
    return said
