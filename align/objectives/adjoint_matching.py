"""Adjoint matching: regress each noisy step on the reward's adjoint, so that images end in p(x_0) exp(lambda r(x_0)).

    a_N = -lambda grad r(x_0),   a_k = J_k^T a_(k+1),   J_k = d mean_ref(x_k)/d x_k        the lean adjoint
    L   = sum over chosen k, SUM over dimensions of ((mean(x_k) - mean_ref(x_k))/std_k + std_k a_(k+1))^2

on a rollout x_0..x_N of the policy with DDIM(1)'s noise, from noise to image. At its least mean = mean_ref - std_k^2
a_(k+1). Domingo-Enrich et al., arXiv 2409.08861, algorithm 2, in discrete form: the adjoint passes through the base
network alone. The steps must be memoryless, x_0 independent of the first noise, or the optimum is another one.
The released code pairs step k with a_k, an error of the order of a step's length. Rows whose loss is beyond a running
quantile are dropped, not clipped.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from align.objectives._base import Loss, Parts
from align.objectives._reward import Gather, RewardObjective, RewardObjectiveConfig
from align.policy.roles import Policy
from align.sampling import rollout
from samplers import Denoiser, Grid, Rng, Trajectory, Transition, call_with_graph, ddim, ddim_law, densities, split

EARLY = 0.6  # share of the steps, from the noisiest, that half of the trained ones are drawn from
REMEMBERED = 20  # updates whose losses the running quantile is of
NOTES = {
    "rollout": "guidance acts in the rollouts only, as released: the best in practice, but sampler and loss disagree "
    "(guided: nothing agrees)",
    "nothing": "training without guidance: sampler and loss agree; use the result at guidance 1",
    "everything": "guided adjoints and losses: sampler and loss agree, but adjoints of a guided network may blow up",
}


class AdjointMatchingConfig(RewardObjectiveConfig):
    """How strong the reward is, and which steps are trained."""

    name: Literal["adjoint_matching"] = "adjoint_matching"
    scale: float = Field(default=100.0, gt=0)
    """lambda: the base's images are weighted by exp(lambda r). The paper's 1 to 100 are for ImageReward."""
    guided: Literal["rollout", "nothing", "everything"] = "rollout"
    """Where sampling.guidance_scale acts in training; adjoint and loss are unguided unless it is everywhere."""
    num_trained: int = Field(default=4, ge=1)
    """Steps that are regressed, half of them from the first 60 % of the steps."""
    quantile: float = Field(default=0.9, gt=0, le=1)
    """Rows whose loss is above this quantile of the last 20 updates' losses are dropped; 1: none."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        sampling = recipe.get("sampling")
        if sampling is None:
            return
        yield from sampling.alone()
        own = sampling.noise_law in (None, "ddim") and sampling.eta in (None, 1)
        if not (sampling.stochastic and own):
            key = "noise_law" if sampling.noise_law not in (None, "ddim") else "eta"
            yield (
                f"sampling.{key}",
                "must make the steps memoryless: where x_0 still depends on the first noise the optimum is not "
                "exp(lambda r) times the base. Use step_rule: ddim with eta: 1 and no other noise_law.",
            )
        if self.num_trained > sampling.num_steps:
            yield (
                ".num_trained",
                f"{self.num_trained} exceeds sampling.num_steps={sampling.num_steps}: there are no more. Lower it.",
            )


class AdjointMatching(RewardObjective):
    """The objective: prompts in, sampled with noise, a few of the steps regressed."""

    Config = AdjointMatchingConfig

    def __init__(self, config: AdjointMatchingConfig, parts: Parts):
        super().__init__(config, parts)
        if config.guided == "nothing":
            self.sampling = parts.sampling.model_copy(update={"guidance_scale": 1.0, "guidance": None})
        self.notes = [f"objective.guided={config.guided}: {NOTES[config.guided]}"]
        self.recent: list[list[float]] = []
        self._losses: list[Tensor] = []

    def __call__(self, policy: Policy, batch: Any, context: Any = None) -> Loss:
        rng = Rng(self.seed, batch.indices, batch.step)
        with torch.no_grad():
            found = rollout(self.sampling, self.model, policy.role("train"), batch.prompts, rng, keep="states")
        chosen = self.chosen(found.times, rng.shared("trained"))
        adjoint, metrics = self.at_the_end(found.x0, batch.prompts)
        cond = self.model.text.encode(batch.prompts)
        adjoints = self.lean(self._denoiser(policy, "reference"), found, adjoint, cond, chosen)
        losses = torch.stack([self._missed(policy, found, k, adjoints[k], cond) for k in chosen]).sum(0)
        self._losses.append(losses.detach())
        weight = self.kept(losses.detach())
        metrics["dropped"] = 1 - weight
        metrics["adjoint"] = torch.stack([adjoints[k].flatten(1).norm(dim=1) for k in chosen]).mean(0)
        return Loss(losses, weight, metrics)

    def chosen(self, times: Tensor, generator: torch.Generator) -> list[int]:
        """The update's steps, rising, 0 the noisiest; the same for all rows and processes."""
        noisy = [k for k, has in enumerate(densities(ddim_law(1.0), self.model.schedule, Grid(times))) if has]
        early = noisy[: max(1, round(EARLY * len(noisy)))]
        late = noisy[len(early) :]
        count = min(self.config.num_trained, len(noisy))
        num_late = min(count // 2, len(late))
        num_early = min(count - num_late, len(early))
        parts = ((early, num_early), (late, count - num_early))
        return sorted(
            steps[i] for steps, n in parts for i in torch.randperm(len(steps), generator=generator)[:n].tolist()
        )

    def at_the_end(self, x0: Tensor, prompts: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """(a_N = -lambda grad r(x_0), (B, ...); the rewards' metrics)."""
        with torch.enable_grad():
            x0 = x0.detach().requires_grad_()
            losses, metrics = self.losses(x0, prompts)
            (adjoint,) = torch.autograd.grad(losses.sum(), x0)
        return adjoint, metrics

    def lean(
        self, reference: Denoiser, found: Trajectory, adjoint: Tensor, cond: Any, chosen: list[int]
    ) -> dict[int, Tensor]:
        """{k: a_(k+1)} for the chosen steps, back from the image through the base's means to the first of them."""
        adjoints: dict[int, Tensor] = {}
        for k in range(len(found.times) - 2, min(chosen) - 1, -1):
            adjoints[k] = adjoint  # of the state that step k leads to
            if k > min(chosen):
                with torch.enable_grad():
                    x = found.states[k].detach().requires_grad_()
                    mean = _step(reference, reference(x, found.times[k], cond), x, found.times, k).mean
                    (adjoint,) = torch.autograd.grad(mean, x, adjoint)
        return adjoints

    def _missed(self, policy: Policy, found: Trajectory, k: int, adjoint: Tensor, cond: Any) -> Tensor:
        """(B,): how far the policy's step k is from its target, a sum over dimensions."""
        x, t = found.states[k].detach(), found.times[k]
        with torch.no_grad():
            reference = self._denoiser(policy, "reference")
            base = _step(reference, reference(x, t, cond), x, found.times, k)
        train = self._denoiser(policy, "train")
        out = call_with_graph(train, x, t, cond, recompute=self.sampling.checkpoint_steps)
        mean = _step(train, out, x, found.times, k).mean
        return ((mean - base.mean).float() / base.std + base.std * adjoint.float()).square().flatten(1).sum(1)

    def _denoiser(self, policy: Policy, role: str) -> Denoiser:
        unguided = policy.role(role)
        if self.config.guided != "everything":
            return unguided
        return self.sampling.guided(unguided, self.sampling.unprompted(self.model.text))

    def kept(self, losses: Tensor) -> Tensor:
        """(B,) of 1 and 0: which rows are within the quantile of the updates before this one."""
        past = [loss for update in self.recent for loss in update]
        if self.config.quantile == 1 or not past:
            return torch.ones_like(losses)
        limit = torch.tensor(past, dtype=torch.float64).quantile(self.config.quantile)
        return (losses <= limit.to(losses)).to(losses)

    def after_update(self, gather: Gather) -> None:
        super().after_update(gather)
        mine, self._losses = self._losses, []
        losses = gather(torch.cat(mine) if mine else torch.empty(0))
        finite = losses[losses.isfinite()].double().cpu().sort().values  # in an order that no cut changes
        self.recent = [*self.recent, finite.tolist()][-REMEMBERED:]

    def state_dict(self) -> dict[str, Any]:
        return {"rewards": super().state_dict(), "recent": self.recent}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["rewards"]:  # normalised ones have a state
            super().load_state_dict(state["rewards"])
        self.recent = [list(update) for update in state["recent"]]


def _step(denoiser: Denoiser, out: Tensor, x: Tensor, times: Tensor, k: int) -> Transition:
    """The memoryless step k from x (B, ...), by the raw output there."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = denoiser.schedule(times[k]), denoiser.schedule(times[k + 1])
    x0, eps = split(out, x, alpha_t, sigma_t, denoiser.kind)
    return ddim(x0, eps, alpha_t, sigma_t, alpha_s, sigma_s, eta=1.0)
