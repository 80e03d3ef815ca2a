"""Diff-Instruct, Diff-Instruct++ and Diff-Instruct*: a generator of a few steps whose images score like the base's.

    x_tau = alpha x0_hat + sigma eps at any tau;   y = (eps_ref - eps_fake)(x_tau)/sigma
    kl      L = w < sg(y), x_tau >                                          Diff-Instruct, Diff-Instruct++, DMD
    score   L = -w < y/sqrt(mean y^2 + c^2), (eps - eps_fake(x_tau))/sigma >        Diff-Instruct*
    and with rewards  - reward_scale r(decode(x0_hat)),     fake: |out_fake - u|^2 on the generator's own samples

Luo et al., arXiv 2305.18455, 2410.18881, 2410.20898; w = sigma^2 unless said otherwise. Of a generator of several steps
one, drawn for each image, carries the gradient. The reference is guided where `guidance` is not 1.
"""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from align.objectives._base import Loss
from align.objectives._few import MARGIN, FewStep, FewStepConfig, Rows, Seen
from align.objectives._matching import kl_form, mean, score_form, size
from align.policy.roles import Policy
from rewards._latents import Undecoded
from samplers import add_noise, target


class DiffInstructConfig(FewStepConfig):
    """The divergence, and how much the reward counts beside it."""

    name: Literal["diff_instruct"] = "diff_instruct"
    form: Literal["kl", "score"] = "kl"
    """kl: no gradient through a further network; score: through the reference and fake, by their input."""
    huber: float = Field(default=1e-3, gt=0)
    """score: c, in units of the scores' root mean square."""
    weight: Literal["sigma2", "one", "dmd"] = "sigma2"
    """w: sigma^2; 1; or sigma^2/alpha over mean |x0_hat - x0_ref|, so that no image and no time outweighs another."""
    reward_scale: float = Field(default=1.0, gt=0)
    """alpha_rew: how much the recipe's rewards count, where it has some (Diff-Instruct*: 100 on SDXL)."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield from super().conflicts(recipe)
        if self.t_min + MARGIN >= 1:
            yield ".t_min", f"{self.t_min:g} leaves no times. Lower it."
        for label, reward in (recipe.get("rewards") or {}).items():
            if not reward.has_gradient():
                yield (
                    f"rewards.{label}",
                    "is not differentiable, and diff_instruct sends its gradient into the generator. Use tdm_r1 for "
                    "it, or watch it in hooks.panel.rewards.",
                )
        combine = recipe.get("combine")
        if combine is not None and combine.normalise != "none":
            yield "combine.normalise", "is not followed here: weigh rewards by objective.reward_scale. Remove it."


class DiffInstruct(FewStep):
    """The objective: prompts in."""

    Config = DiffInstructConfig

    def student(self, policy: Policy, batch: Any, context: Any = None) -> Loss:
        """The divergence at one drawn time, and the reward at the image."""
        config, rows, cond = self.config, self.rows(policy, batch), self.model.text.encode(batch.prompts)
        x0_hat = self.predicted(policy.role("train"), rows.x_t, rows.t, cond).x0
        tau, eps = self.noise(rows, "student")
        alpha, sigma = self.model.schedule(tau)
        x_tau = add_noise(self.model.schedule, x0_hat, eps, tau)
        with torch.no_grad() if config.form == "kl" else nullcontext():
            reference = self.predicted(self.guided(policy, "reference", config.guidance), x_tau, tau, cond)
            fake = self.predicted(policy.role("fake"), x_tau, tau, cond)
        apart = size(reference.x0 - fake.x0)
        weight = self._weight(alpha, sigma, size(x0_hat - reference.x0))
        if config.form == "kl":
            losses = kl_form(x_tau, reference.eps, fake.eps, sigma, weight)
        else:
            losses = score_form(eps, reference.eps, fake.eps, sigma, weight, config.huber)
        said: dict[str, Tensor] = {"apart": apart}
        if self.rewards is not None and self.rewards.rewards:
            terms, total, more = self.rewards.score(Undecoded(x0_hat, self.model.codec), batch.prompts)
            losses = losses - config.reward_scale * total.to(losses)
            said |= {f"reward/{label}": scores for label, scores in terms.items()} | more
            said["reward/total"] = total.detach()
        return Loss(losses, torch.ones_like(losses), said)

    def fake_error(self, seen: Seen, rows: Rows, tau: Tensor, eps: Tensor) -> Tensor:
        """(B,): as the base was trained."""
        alpha, sigma = self.model.schedule(tau)
        return mean((seen.out - target(rows.x0_hat, eps, alpha, sigma, self.model.kind)).square())

    def times(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """All of them."""
        return torch.full_like(rows.t, self.config.t_min), torch.full_like(rows.t, 1 - MARGIN)

    def _weight(self, alpha: Tensor, sigma: Tensor, error: Tensor) -> Tensor:
        """w, (B,)"""
        if self.config.weight == "one":
            return torch.ones_like(error)
        squares = sigma.square().to(error)
        return squares if self.config.weight == "sigma2" else squares / alpha.to(error) / error.clamp(min=1e-5)
