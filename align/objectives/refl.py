"""ReFL: read the reward on the clean image that a late step predicts, and differentiate that one prediction.

    L = lambda max(0, margin - r(decode(x0_hat(x_m)), prompt))  +  mu |out - target|^2,    m uniform on first..last

x_m comes from m steps without gradient, x0_hat from one network call with it. Xu et al., "ImageReward", arXiv
2304.05977, algorithm 1: 40 steps without guidance, m in 30..39 (default here: the last quarter of the steps),
lambda = 1e-3, margin 2. At m = N - 1, where sigma_s = 0, this is DRaFT-1.

The second term is the denoising loss on images with captions (eq. 5), which keeps the model a model of images; the
authors' released trainer lacks it. It needs a data source whose rows carry images, and draws t uniformly.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from align.models._base import device_of
from align.objectives._base import Loss
from align.objectives._reward import RewardObjective, RewardObjectiveConfig
from align.policy.roles import Policy
from align.sampling import rollout
from samplers import Rng, add_noise, generator, last, target


class ReFLConfig(RewardObjectiveConfig):
    """Where the reward is read, and how much it weighs."""

    name: Literal["refl"] = "refl"
    margin: float | None = 2.0
    """Minimise max(0, margin - r); null: -r. The default is ImageReward's; set it to suit the reward's range."""
    scale: float = Field(1e-3, gt=0)
    """lambda."""
    first: int | None = Field(None, ge=0)
    """The earliest step m whose prediction is read, counted from 0. Default: 3/4 num_steps."""
    last: int | None = Field(None, ge=0)
    """The latest. Default: num_steps - 1."""
    pretraining: float = Field(0.0, ge=0)
    """mu, the weight of the denoising loss; the data source must give images (data: captioned)."""

    def steps(self, num_steps: int) -> tuple[int, int]:
        """(first, last) of a rollout with so many steps."""
        last = num_steps - 1 if self.last is None else self.last
        return min(last, 3 * num_steps // 4) if self.first is None else self.first, last

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        sampling, data = recipe.get("sampling"), recipe.get("data")
        if sampling is not None:
            first, last = self.steps(sampling.num_steps)
            if not first <= last < sampling.num_steps:
                yield (
                    ".last",
                    (
                        f"steps {first}..{last} are not all among the {sampling.num_steps} that are taken, 0.."
                        f"{sampling.num_steps - 1}. Set first <= last < num_steps."
                    ),
                )
        if self.pretraining and data is not None and not getattr(data, "has_images", False):
            yield ".pretraining", f"needs images, and data.name={data.name} gives none. Set it to 0, or use captioned."


class ReFL(RewardObjective):
    """The objective: prompts in, sampled to a random late step, whose prediction is scored."""

    Config = ReFLConfig

    def __call__(self, policy: Policy, batch: Any, context: Any = None) -> Loss:
        rng = Rng(self.seed, batch.indices, batch.step)
        first, final = self.config.steps(self.sampling.num_steps)
        m = int(torch.randint(first, final + 1, (), generator=rng.shared("m")))
        grad = replace(last(1), checkpoint=self.sampling.checkpoint_steps)
        role, num_calls = policy.role("train"), self.sampling.call_of(m) + 1
        x0_hat = rollout(self.sampling, self.model, role, batch.prompts, rng, grad=grad, num_calls=num_calls).x0_hat
        losses, metrics = self.losses(x0_hat, batch.prompts)
        metrics["step_read"] = torch.tensor(float(m))
        if self.config.pretraining:
            denoising = self._denoising(policy, batch, rng)
            losses = losses + self.config.pretraining * denoising
            metrics["denoising"] = denoising.detach()
        return Loss(losses, torch.ones_like(losses), metrics)

    def _denoising(self, policy: Policy, batch: Any, rng: Rng) -> Tensor:
        """(B,): squared error on the network's own target, mean over dimensions, at one uniform t for each row."""
        denoiser = policy.role("train")
        with torch.no_grad():
            posterior = self.model.codec.encode(batch.images().to(device_of(self.model.network)))
            x0 = posterior.sample(rng.normal("posterior", posterior.mean))
        noise = rng.normal("denoising", x0)
        t = torch.cat([torch.rand(1, generator=generator(self.seed, "denoising/t", i)) for i in batch.indices]).to(x0)
        alpha_t, sigma_t = denoiser.schedule(t)
        out = denoiser(add_noise(denoiser.schedule, x0, noise, t), t, self.model.text.encode(batch.prompts))
        return (out - target(x0, noise, alpha_t, sigma_t, denoiser.kind)).square().flatten(1).mean(1)
