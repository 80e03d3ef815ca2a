"""Fairness: bring the distribution of an attribute over a prompt's images to a target, and leave the images else.

    p(c | image) = softmax over attributes c of r(image, attribute c)           any reward that reads the prompt
    L = [u <= limit] CE(p, y) + preserve w (1 - cos(f(image), f(image_0))),     w = 0.2 where the class has to change

y, u: the target and its uncertainty, by optimal assignment over all images of the prompt in the update, on all
processes (_assignment.py); image_0: the base's image of the same noise. Shen et al., "Finetuning Text-to-Image
Diffusion Models for Fairness", arXiv 2311.07604: the distributional alignment loss, with adjusted DFT's gradient
(_adjusted.py). f are the unit features of the CLIP towers among the rewards, or the pixels where there are none.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from align.errors import UserError
from align.objectives._adjusted import AdjustedConfig, adjusted, drawn
from align.objectives._assignment import expected
from align.objectives._base import Loss
from align.objectives._reward import Gather, RewardObjective
from align.policy.roles import Policy
from align.sampling import rollout
from samplers import GradPolicy, Rng, generator

CHANGES = 0.2  # weight of the preservation where the class has to change, as published
Phrase = Annotated[str, Field(min_length=1)]
Targets = dict[int, tuple[int, bool, bool]]
"""{sample index: (class, whether it is certain enough to train on, whether it is another than the image's own)}"""


class FairnessConfig(AdjustedConfig):
    """Which attributes, in which shares."""

    needs_gradient: ClassVar[bool] = True
    name: Literal["fairness"] = "fairness"
    reversible: ClassVar[bool] = True
    attributes: dict[Phrase, Annotated[float, Field(ge=0)]] | list[Phrase] = Field(min_length=2)
    """{text: share}, or texts in equal shares, as the rewards read them ("a photo of a woman"); {} stands for the
    image's own prompt."""
    sharpness: float = Field(default=1.0, gt=0)
    """Factor of the scores before the softmax; 1 for logits, 100 for cosines."""
    uncertainty: float = Field(default=0.2, ge=0, lt=1)
    """Images whose target could as well have been another, by more than this, are not trained to it."""
    num_draws: int = Field(default=100, ge=1)
    """With more than two attributes: label sets that targets are the mean of."""
    preserve: float = Field(default=8.0, ge=0)
    """Weight of the likeness to the base's image of the same noise."""

    @property
    def texts(self) -> list[str]:
        return list(self.attributes)

    @property
    def shares(self) -> list[float]:
        """They sum to 1."""
        given = self.attributes
        return list(given.values()) if isinstance(given, dict) else [1 / len(given)] * len(given)

    @model_validator(mode="after")
    def _whole(self) -> "FairnessConfig":
        if abs(sum(self.shares) - 1) > 1e-3:
            raise ValueError(f"attributes: the shares sum to {sum(self.shares):g}. Make them sum to 1.")
        if len({*self.texts}) != len(self.texts):
            raise ValueError("attributes: one stands there twice. Remove one of them.")
        return self

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield from super().conflicts(recipe)
        train = recipe.get("train")
        if train is not None and train.batch_size < 2 * len(self.texts):
            yield (
                "train.batch_size",
                f"is {train.batch_size}, too few images to see shares of {len(self.texts)} attributes in. Set it to "
                f"{2 * len(self.texts)} or more (the paper: 24 for two).",
            )


class Fairness(RewardObjective):
    """The objective: prompts in, each several times in an update."""

    Config = FairnessConfig
    same_steps = True

    @property
    def ahead(self) -> int:
        """An image is drawn to see what it shows."""
        return self.sampling.num_rows

    def before_update(self, policy: Policy, micro_batches: Sequence[Any], gather: Gather) -> Targets:
        """The targets of all images of the update, the same on every process."""
        super().before_update(policy, micro_batches, gather)
        p, keys = [torch.empty(0, len(self.config.texts))], [torch.empty(0, 3, dtype=torch.long)]
        for batch in micro_batches:
            with torch.no_grad():
                pixels = self.model.codec.decode(self._sampled(policy, "train", batch, None))
                p.append(self.logits(pixels, batch.prompts).softmax(1).float().cpu())
            named = [(i, _number(prompt), batch.step) for i, prompt in zip(batch.indices, batch.prompts, strict=True)]
            keys.append(torch.tensor(named, dtype=torch.long))
        return self.targets(gather(torch.cat(p)).cpu(), gather(torch.cat(keys)).cpu())

    def targets(self, p: Tensor, keys: Tensor) -> Targets:
        """p: (B, C) class probabilities; keys: (B, 3) sample index, prompt's number, update."""
        if len(p) and float((p.amax(1) - p.amin(1)).max()) == 0:
            raise UserError(
                "rewards: every image scores the same for all of objective.attributes, so that there is no class and "
                "no gradient. Use a reward that reads the prompt, such as clip with form: logit."
            )
        found: Targets = {}
        for number in keys[:, 1].unique().tolist():
            rows = keys[:, 1] == number
            draws = generator(self.seed, f"fairness/{number}", int(keys[rows, 2][0]))
            t = expected(p[rows], self.config.shares, draws, num_draws=self.config.num_draws)
            classes, certain = t.argmax(1), 1 - t.amax(1) <= self.config.uncertainty
            other = classes != p[rows].argmax(1)
            told = zip(keys[rows, 0].tolist(), classes.tolist(), certain.tolist(), other.tolist(), strict=True)
            found |= {index: (label, sure, change) for index, label, sure, change in told}
        return found

    def __call__(self, policy: Policy, batch: Any, context: Targets | None = None) -> Loss:
        x0 = self._sampled(policy, "train", batch, adjusted)
        pixels = self.model.codec.decode(x0)
        logits = self.logits(pixels, batch.prompts)
        if context is None:  # nothing was asked before: every image is to stay what it is
            label, certain = logits.detach().argmax(1), torch.ones_like(logits[:, 0])
            change = torch.zeros_like(certain)
        else:
            told = torch.tensor([context[index] for index in batch.indices], device=logits.device)
            label, certain, change = told[:, 0].long(), told[:, 1].to(logits), told[:, 2].to(logits)
        losses = certain * functional.cross_entropy(logits, label, reduction="none")
        said = {"certain": certain, "change": change}
        said |= {f"share/{i}": share for i, share in enumerate(logits.detach().softmax(1).unbind(1))}
        if self.config.preserve:
            with torch.no_grad():
                base = self.model.codec.decode(self._sampled(policy, "reference", batch, None))
            looks = zip(self.looks(pixels), self.looks(base), strict=True)
            apart = torch.stack([1 - (own * its).sum(1) for own, its in looks]).sum(0)
            losses = losses + self.config.preserve * (1 - (1 - CHANGES) * change) * apart
            said["apart"] = apart.detach()
        return Loss(losses, torch.ones_like(losses), said)

    def _sampled(self, policy: Policy, role: str, batch: Any, grad: Any) -> Tensor:
        """A role's images of the batch, always from the same noise, (B, ...); `grad` makes the gradient's policy."""
        rng = Rng(self.seed, batch.indices, batch.step)
        sampling = drawn(self.sampling, self.config.vary_steps, rng)
        how: GradPolicy | None = None if grad is None else grad(sampling, self.model)
        return rollout(sampling, self.model, policy.role(role), batch.prompts, rng, grad=how).x0

    def logits(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B, C) with the graph of `pixels` (B, 3, H, W): each attribute's total, times the sharpness."""
        totals = []
        for text in self.config.texts:
            scored = self.rewards.score(pixels, [text.replace("{}", prompt) for prompt in prompts])
            if torch.is_grad_enabled():  # the same images were looked at before
                self._scores.append(torch.stack(list(scored.terms.values()), 1))
            totals.append(scored.total)
        return self.config.sharpness * torch.stack(totals, 1)

    def looks(self, pixels: Tensor) -> list[Tensor]:
        """Unit vectors (B, D) that images are compared by, with the graph of `pixels`."""
        towers = [reward for reward in self.rewards.rewards.values() if hasattr(reward, "clip")]
        if any(reward.config.offload for reward in towers) or not towers:
            return [functional.normalize(pixels.flatten(1), dim=1)]
        return [reward.clip.images(pixels.float()) for reward in towers]


def _number(prompt: str) -> int:
    """A prompt as a number that is the same on every process."""
    return int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=7).digest(), "little")
