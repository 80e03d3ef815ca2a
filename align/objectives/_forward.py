"""What the objectives share that train on finished images noised again: the times, the noises, the network's answers.

    x_t = alpha_t x_0 + sigma_t eps,     u = the network's regression target (eps, v or velocity: its own kind)

The times are those of the rollout's grid: the k looks at an image lie in k equal strata of it, one in each, drawn for
each image, for each group, or for all images of the rollout. Sharing (t, eps) in a group leaves two images of it to
differ by themselves alone. No guidance here: what guidance the images were drawn with is learnt into the weights.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from align.data._wanted import Wanted
from align.models._base import device_of
from align.objectives._base import Parts
from align.policy.roles import Policy
from align.registry import ComponentConfig
from samplers import Prediction, add_noise, flow_time, generator, noise, split, target


class ForwardConfig(ComponentConfig):
    """How images are noised again, and how closely the policy is held."""

    num_draws: int = Field(default=4, ge=1)
    """k, looks at an image in an update, each at a time and a noise of its own."""
    share_times: Literal["image", "group", "update"] = "image"
    """What has the same times: nothing but the image, its group, or all images of the rollout."""
    share_noise: bool = False
    """Whether a group's images are noised alike."""
    reference: float = Field(default=0.0, ge=0)
    """Weight of mean |out - out_ref|^2, the pull to the base; 0 spares its pass."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        data, sampling = recipe.get("data"), recipe.get("sampling")
        if data is not None and not hasattr(data, "group_size"):
            yield "data", "makes no groups of the policy's own images. Use `data: {name: groups, prompts: ...}`."
        if sampling is not None and self.num_draws > sampling.num_steps:
            yield (
                ".num_draws",
                f"{self.num_draws} exceeds sampling.num_steps={sampling.num_steps}: there are no more times. Lower it.",
            )


def one_update_a_rollout(recipe: Mapping[str, Any], why: str) -> Iterator[tuple[str, str]]:
    """A recipe whose rollouts serve more than one update."""
    data, train = recipe.get("data"), recipe.get("train")
    images = getattr(data, "group_size", 0) * (getattr(data, "num_prompts", None) or 0)
    if train is not None and images > train.batch_size:
        yield (
            "data.num_prompts",
            f"makes {images} images a rollout for several updates of {train.batch_size}: {why} Leave it out, or raise "
            "train.batch_size.",
        )


@dataclass(frozen=True)
class Noised:
    """Rows at their times; coefficients on the CPU."""

    x0: Tensor
    """(B, ...)"""
    x_t: Tensor
    t: Tensor
    """(B,) float64"""
    alpha: Tensor
    sigma: Tensor
    u: Tensor
    """(B, ...): what the network is regressed on."""
    kind: Prediction

    def x0_hat(self, out: Tensor) -> Tensor:
        """The data that an output predicts; affine in it."""
        return split(out, self.x_t, self.alpha, self.sigma, self.kind)[0]

    @property
    def flow_time(self) -> Tensor:
        """(B,): t on a rectified flow, sigma/(alpha + sigma) on any schedule."""
        return flow_time(self.alpha, self.sigma)


class Forward:
    """Base: `wanted` says what the source keeps, and who draws."""

    def __init__(self, config: Any, parts: Parts, *, role: str = "train"):
        self.config, self.model, self.sampling, self.seed = config, parts.model, parts.sampling, parts.seed
        self.wanted = Wanted(draws=config.num_draws, role=role)

    def noised(self, batch: Any) -> Noised:
        """The rows' images at their looks' times."""
        model, slots = self.model, batch.slot.tolist()
        device = device_of(model.network)
        x0 = batch.x0.to(device)
        times = self.sampling.grid(model).times[:-1]
        keys = {"image": batch.indices, "group": batch.groups, "update": [batch.number] * len(batch)}
        t = torch.stack(
            [self._time(times, j, key) for j, key in zip(slots, keys[self.config.share_times], strict=True)]
        )
        owners = batch.groups if self.config.share_noise else batch.indices
        rows = [noise(self.seed, f"forward/{j}", [key], x0.shape[1:]) for j, key in zip(slots, owners, strict=True)]
        eps = torch.cat(rows).to(x0)
        alpha, sigma = model.schedule(t)
        x_t = add_noise(model.schedule, x0, eps, t)
        return Noised(x0, x_t, t, alpha, sigma, target(x0, eps, alpha, sigma, model.kind), model.kind)

    def _time(self, times: Tensor, slot: int, key: int) -> Tensor:
        """One of the grid's times in stratum `slot` of k; ()."""
        low, high = (len(times) * j // self.config.num_draws for j in (slot, slot + 1))
        drawn = generator(self.seed, f"forward/time/{slot}", key)
        return times[int(torch.randint(low, high, (), generator=drawn))]

    def out(self, policy: Policy, role: str, rows: Noised, cond: Any) -> Tensor:
        """A role's raw output, (B, ...); all but "train" without graph."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and role == "train"):
            return policy.role(role)(rows.x_t, rows.t.to(rows.x_t.device), cond)

    def held(self, out: Tensor, policy: Policy, rows: Noised, cond: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """(B,): the weighted pull to the base, and its metric."""
        if not self.config.reference:
            return out.new_zeros(len(out)), {}
        apart = (out - self.out(policy, "reference", rows, cond)).square().flatten(1).mean(1)
        return self.config.reference * apart, {"apart_reference": apart.detach()}
