"""DRaFT: differentiate the reward of a finished sample with respect to the adapter, through the last K sampling steps.

    L = -r(decode(x_0), prompt),   x_0 = sample(theta, prompt, x_T),   theta is constant in the first N - K steps

Clark et al., "Directly Fine-Tuning Diffusion Models on Differentiable Rewards", arXiv 2309.17400: DRaFT is
sampling.window=full, DRaFT-K is sampling.last_k=K (eq. 4), DRaFT-LV is last_k=1 with num_noises=2 (section 4.2):

    x_1^j = alpha_1 sg(x_0) + sigma_1 eps_j,   j = 1..n,   re-noised to the level of the last step's input;
    the loss is the mean of -r at x_0 and at the n predictions x0_hat(x_1^j), so 1 + n gradients for one trajectory.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from align.objectives._base import Loss, Parts
from align.objectives._kept import Kept
from align.objectives._reward import Gather, RewardObjective, RewardObjectiveConfig
from align.policy.roles import Policy
from align.sampling import begin, rollout
from samplers import Grid, Rng, Trajectory, add_noise, last, sample, target


class DraftConfig(RewardObjectiveConfig):
    """What is done with the reward; which steps carry its gradient is said in `sampling`."""

    name: Literal["draft"] = "draft"
    reversible: ClassVar[bool] = True
    reuses: ClassVar[bool] = True
    num_noises: int = Field(0, ge=0)
    """n of DRaFT-LV: further noisings of x_0 at the last step (the paper: 2)."""
    kl: float = Field(0.0, ge=0)
    """Weight of |out - out_ref|^2, mean over dimensions and over the steps that carry gradient."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        sampling = recipe.get("sampling")
        if sampling is not None and sampling.window == "last" and sampling.last_k == 0:
            yield "sampling.last_k", "is 0: no step would carry the reward's gradient. Set it to 1 or more."
        roles = () if sampling is None or (sampling.window, sampling.last_k) != ("last", 1) else sampling.roles
        if roles and roles[-1][0] == "reference":
            yield "sampling.roles", "end with the base, and the last step is the one that is trained. Widen the window."
        if self.kl and sampling is not None and sampling.memory == "reversible":
            yield ".kl", f"is {self.kl}, and a reversible chain keeps no states to compare. Set memory: checkpointed."
        if (self.kl or self.num_noises) and sampling is not None:
            yield from sampling.alone()
        one = sampling is None or (sampling.window == "last" and sampling.last_k <= 1)
        if self.kl and not one and getattr(recipe.get("model"), "checkpoint_blocks", False):
            yield (
                "model.checkpoint_blocks",
                "cannot go with objective.kl over several steps: the reference's blocks would be recomputed with the "
                "adapter on. Set it to false (sampling.memory=checkpointed saves most of it), or last_k to 1.",
            )


class Draft(RewardObjective):
    """The objective: prompts in, sampled, decoded and scored with the graph that `sampling` asks for."""

    Config = DraftConfig

    def __init__(self, config: DraftConfig, parts: Parts):
        super().__init__(config, parts)
        self.kept = Kept(parts.sampling)
        self.same_steps = parts.sampling.window in ("last", "subset", "full")

    def before_update(self, policy: Policy, micro_batches: Sequence[Any], gather: Gather) -> None:
        super().before_update(policy, micro_batches, gather)

        def begun(batch: Any) -> Tensor:
            rng = Rng(self.seed, batch.indices, batch.step)
            return begin(self.sampling, self.model, policy.role("train"), batch.prompts, rng)

        self.kept.before_update(micro_batches, begun, gather)

    def __call__(self, policy: Policy, batch: Any, context: Any = None) -> Loss:
        rng = Rng(self.seed, batch.indices, batch.step)
        trajectory = rollout(
            self.sampling,
            self.model,
            policy.role("train"),
            batch.prompts,
            rng,
            grad=self.sampling.grad_policy(),
            keep="all" if self.config.kl else "last",
            begun=self.kept.of(batch.indices),
        )
        losses, metrics = self.losses(trajectory.x0, batch.prompts)
        metrics |= self.kept.said()
        if n := self.config.num_noises:
            predictions = self._renoised(policy, trajectory.x0.detach(), batch.prompts, rng)
            repeated = [prompt for prompt in batch.prompts for _ in range(n)]
            extra, _ = self.losses(predictions, repeated, observed=False)
            losses = (losses + extra.view(-1, n).sum(1)) / (1 + n)
        if self.config.kl:
            kl = self._kl(policy, trajectory, batch.prompts)
            losses = losses + self.config.kl * kl
            metrics["kl"] = kl.detach()
        return Loss(losses, torch.ones_like(losses), metrics)

    def after_update(self, gather: Gather) -> None:
        super().after_update(gather)
        self.kept.after_update()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | self.kept.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kept.load_state_dict(state)
        if rest := {name: held for name, held in state.items() if name != "kept"}:
            super().load_state_dict(rest)

    def _renoised(self, policy: Policy, x0: Tensor, prompts: Sequence[str], rng: Rng) -> Tensor:
        """x0 (B, ...) -> the predictions x0_hat^j, (B n, ...), a sample's n side by side."""
        times = self.sampling.grid(self.model).times[-2:]
        noises = torch.stack([rng.normal(f"renoise/{j}", x0) for j in range(self.config.num_noises)], 1).flatten(0, 1)
        x_1 = add_noise(self.model.schedule, x0.repeat_interleave(self.config.num_noises, 0), noises, times[0])
        cond = self.model.text.encode(prompts).repeat(self.config.num_noises)
        denoiser = self.sampling.guided(policy.role("train"), self.sampling.unprompted(self.model.text))
        grad = replace(last(1), checkpoint=self.sampling.checkpoint_steps)
        return sample(denoiser, x_1, Grid(times), cond, grad=grad).x0_hat

    def _kl(self, policy: Policy, trajectory: Trajectory, prompts: Sequence[str]) -> Tensor:
        """(B,). The reference sees x_t as the policy did: with its graph, or without it where inputs are detached; the
        gradient through x_t would else be wrong."""
        cond = self.model.text.encode(prompts)
        reference = self.sampling.guided(policy.role("reference"), self.sampling.unprompted(self.model.text))
        gaps = []
        for i in [i for i, kept in enumerate(trajectory.kept) if kept]:
            x_t, t = trajectory.states[i], trajectory.times[i]
            alpha_t, sigma_t = reference.schedule(t)
            x0 = trajectory.x0_hats[i]
            out = target(x0, (x_t - alpha_t * x0) / sigma_t, alpha_t, sigma_t, reference.kind)
            seen = x_t.detach() if self.sampling.detach_input else x_t
            out_ref = checkpoint(reference, seen, t, cond, use_reentrant=False)
            gaps.append((out - out_ref).square().flatten(1).mean(1))
        return torch.stack(gaps).mean(0)
