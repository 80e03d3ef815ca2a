"""TDM-R1: a reward without gradient for a few-step student, by way of a surrogate that learns which of its images win.

    surrogate  x_s of a late step j', noised on to tau; errors against the exact target v* of noisy data (_matching.py)
               S = (beta/G) sum_i A_i (err_phi,i - err_ref,i),   eps, j', tau shared in the group
               L = ((j' + 1)/K) sg(sigmoid(S)) A err_phi + surrogate_pull |out_phi - out_ref|^2
    student    x0_hat of step j, x_tau as in TDM;   H(D) = |x0_hat - sg(x0_hat + D)|^2 / size
               L = .3 H((w - 1)(x0_c - x0_u)) + .7 H(x0_phi - x0_ref) + H(x0_ref - x0_fake)   of the first `steps` steps
               L = .3 [H((w - 1)(x0_c - x0_u)) + H(x0_ref - x0_fake)]                            of the others
    fake       as the base is trained, on x0_hat of step j, + fake_pull |out - out_ref|^2

Luo et al., arXiv 2603.07700. The reward is only ever compared within a group; it never meets the student, which follows
the surrogate's score and, by fake, stays near the base: so that it stays sharp. A row leaves the surrogate's loss where
exp(err_ema - err_phi) has left 1 +- clip in its favour, or |out_phi - out_ref|^2 exceeds `radius`: two trust regions.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from align.data._wanted import Wanted
from align.models._base import device_of
from align.objectives._base import Loss, Move, Parts
from align.objectives._few import MARGIN, FewStep, FewStepConfig, Rows, Seen
from align.objectives._forward import one_update_a_rollout
from align.objectives._matching import mean, size, toward
from align.objectives._surrogate import Surrogate
from align.policy.cast import Snapshot, Trained
from align.policy.roles import Policy
from samplers import Prediction, add_noise, target
from samplers.prediction import solve


class TDMR1Config(FewStepConfig):
    """The surrogate's preferences and limits, and how much it counts."""

    name: Literal["tdm_r1"] = "tdm_r1"
    beta: float = Field(default=1.0, gt=0)
    """Temperature of the groups' preferences, on errors that are means over dimensions (released: 10 for OCR)."""
    surrogate_rate: float = Field(default=4.0, gt=0)
    """The surrogate's learning rate, in units of optim.lr."""
    fake_rate: float = Field(default=4.0, gt=0)
    """Fake's learning rate, in units of optim.lr."""
    surrogate_guidance: float = Field(default=2.5, ge=0)
    """Guidance of the surrogate that the student follows (released: 2.5 for GenEval, 3.5 for ImageReward); 1: none."""
    surrogate_t_min: float = Field(default=0.25, gt=0, lt=1)
    """The least time that the surrogate learns at."""
    clip: float = Field(default=1e-3, gt=0)
    """How far exp(err_ema - err_phi) may leave 1 (released: 2e-3 for ImageReward and HPS)."""
    radius: float = Field(default=0.05, gt=0)
    """Most of mean |out_phi - out_ref|^2."""
    surrogate_pull: float = Field(default=1e-3, ge=0)
    """Weight of the surrogate's pull to the base."""
    fake_pull: float = Field(default=0.02, ge=0)
    """Weight of fake's pull to the base."""
    steps: int | None = Field(default=None, ge=0)
    """The first so many steps of the student follow the surrogate (released: 4 of 4, or 2). Default: all."""
    reward_share: float = Field(default=0.7, ge=0, le=1)
    """Share of the surrogate against guidance in them."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield from super().conflicts(recipe)
        if (data := recipe.get("data")) is not None and not hasattr(data, "group_size"):
            yield "data", "makes no groups of the policy's own images. Use `data: {name: groups, prompts: ...}`."
        yield from one_update_a_rollout(recipe, "fake learns what the student makes now.")


class TDMR1(FewStep):
    """The objective: groups of rewarded images with their states in."""

    Config = TDMR1Config

    def __init__(self, config: TDMR1Config, parts: Parts):
        super().__init__(config, parts)
        self.wanted = Wanted(states=True)
        moments = {"betas": (0.9, 0.999)}
        self.adapters |= {
            "surrogate": Trained(rate=config.surrogate_rate, optim=moments),
            "surrogate_ema": Snapshot(of="surrogate", decay=lambda step: min(0.3, 1e-3 + 1e-3 * step)),
        }
        self.surrogate = Surrogate(config, self)

    def moves(self, step: int) -> list[Move]:
        """fake, surrogate, student."""
        return [*self.fakes(), Move("surrogate", self.surrogate), *self.own(step)]

    def student(self, policy: Policy, batch: Any, context: Any = None) -> Loss:
        """Toward guidance, toward what wins, and back to the base's distribution."""
        config, rows, cond = self.config, self.rows(policy, batch), self.model.text.encode(batch.prompts)
        x0_hat = self.predicted(policy.role("train"), rows.x_t, rows.t, cond).x0
        tau, eps = self.noise(rows, "student")
        with torch.no_grad():
            x_tau = add_noise(self.model.schedule, x0_hat, eps, tau)

            def x0(role: str, w: float = 1.0) -> Tensor:
                return self.predicted(self.guided(policy, role, w), x_tau, tau, cond).x0

            reference, guided, fake = x0("reference"), x0("reference", config.guidance), x0("fake")
            preferred = x0("surrogate", config.surrogate_guidance)
        scale = size(x0_hat - guided)
        parts = {
            "guidance": toward(x0_hat, guided - reference, scale),
            "reward": toward(x0_hat, preferred - reference, size(x0_hat - preferred)),
            "kl": toward(x0_hat, reference - fake, scale),
        }
        share, count = config.reward_share, self.sampling.num_steps if config.steps is None else config.steps
        early = (rows.step < count).to(x0_hat)
        losses = (1 - share) * parts["guidance"] + early * (share * parts["reward"] + parts["kl"])
        losses = losses + (1 - early) * (1 - share) * parts["kl"]
        said = {f"toward_{name}": value.detach() for name, value in parts.items()}
        return Loss(losses, torch.ones_like(losses), {**batch.said, **said})

    def fake_error(self, seen: Seen, rows: Rows, tau: Tensor, eps: Tensor) -> Tensor:
        """(B,)"""
        alpha, sigma = self.model.schedule(tau)
        return mean((seen.out - target(rows.x0_hat, eps, alpha, sigma, self.model.kind)).square())

    def fake(self, policy: Policy, batch: Any, context: Any = None, *, number: int = 0) -> Loss:
        """As in TDM, and held to the base."""
        rows, cond = self.rows(policy, batch), self.model.text.encode(batch.prompts)
        tau, eps = self.noise(rows, f"fake/{number}")
        x_tau = add_noise(self.model.schedule, rows.x0_hat, eps, tau)
        seen = self.predicted(policy.role("fake"), x_tau, tau, cond)
        losses = self.fake_error(seen, rows, tau, eps)
        if self.config.fake_pull:
            with torch.no_grad():
                reference = self.predicted(policy.role("reference"), x_tau, tau, cond).out
            losses = losses + self.config.fake_pull * mean((seen.out - reference).square())
        return Loss(losses, torch.ones_like(losses), {})

    def times(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Between a step's own time and the next one's, as in TDM."""
        low = rows.s.clamp(min=self.config.t_min)
        return low, torch.maximum(rows.t - MARGIN, low + MARGIN)

    def rows(self, policy: Policy, batch: Any) -> Rows:
        """Of the states that were kept: the two of a straight step say what was predicted in it."""
        device = device_of(self.model.network)
        x_t, x_s, schedule = batch.x_t.to(device), batch.x_s.to(device), self.model.schedule
        (alpha_t, sigma_t), level = schedule(batch.t), schedule(batch.s)
        x0_hat, _ = solve(x_s, x_t, alpha_t, sigma_t, level, Prediction.V)
        keys = [
            index * self.sampling.num_steps + j for index, j in zip(batch.indices, batch.slot.tolist(), strict=True)
        ]
        return Rows(x_t, batch.t, batch.s, x0_hat, batch.slot, keys)
