"""A diffusion LoRA that learns a group's preferences on the student's own states: TDM-R1's surrogate of a reward.

Its rows are noisy images x_s of late steps, noised on; the target is exact for them (_matching.noisy_target). What it
prefers is only what wins within a group, so that a reward may be a table of numbers.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from align.models._base import device_of
from align.objectives._base import Loss
from align.objectives._matching import drawn_times, mean, noisy_target
from align.objectives._rl_losses import Margins, margins
from align.policy.roles import Policy
from samplers import generator, noise

END = 0.99
"""The latest time: at 1 nothing is left of an image."""


class Noised(NamedTuple):
    """Rows of noisy images noised on; the errors are means over dimensions."""

    x_tau: Tensor
    tau: Tensor
    """(B,) float64"""
    u: Tensor
    late: Tensor
    """(B,): (j' + 1)/K."""


class Surrogate:
    """The surrogate's move of a round. `method`: the objective, whose model, seed and predictions it uses."""

    ahead = 2

    def __init__(self, config: Any, method: Any):
        self.config, self.method = config, method

    @torch.no_grad()
    def before_update(
        self, policy: Policy, micro_batches: Sequence[Any], gather: Callable[[Tensor], Tensor]
    ) -> Margins:
        """Every group's S, from all of its rows on all processes."""
        found = []
        for batch in micro_batches:
            rows, cond = self.noised(batch), self.method.model.text.encode(batch.prompts)
            own, base = (self._error(policy, role, rows, cond)[0] for role in ("surrogate", "reference"))
            found.append((batch, own - base))
        return margins(found, self.config.beta, gather)

    def __call__(self, policy: Policy, batch: Any, context: Margins | None = None) -> Loss:
        """(B,) of the preference, less the rows that have gone far enough, and the pull to the base."""
        config, rows = self.config, self.noised(batch)
        cond = self.method.model.text.encode(batch.prompts)
        with torch.no_grad():
            before, _ = self._error(policy, "surrogate_ema", rows, cond)
            _, base = self._error(policy, "reference", rows, cond)
        error, out = self._error(policy, "surrogate", rows, cond)
        apart, gain = mean((out - base).square()), batch.advantage.to(out)
        keys = zip(batch.groups, batch.slot.tolist(), strict=True)
        margin = torch.tensor([(context or {}).get(key, 0.0) for key in keys], device=out.device)
        ratio = (before - error.detach()).exp()
        done = torch.where(gain > 0, ratio > 1 + config.clip, ratio < 1 - config.clip) & (gain != 0)
        free = (~(done | (apart.detach() > config.radius))).to(out)
        losses = rows.late.to(out) * margin.sigmoid() * free * gain * error + config.surrogate_pull * apart
        said = {"margin": margin, "frozen": 1 - free, "apart": apart.detach(), "error": error.detach()}
        return Loss(losses, torch.ones_like(losses), said)

    def noised(self, batch: Any) -> Noised:
        """What a group shares is drawn by (seed, stream, group) alone: j', tau and eps."""
        method, config = self.method, self.config
        model, seed = method.model, method.seed
        count = method.sampling.num_steps
        looks = [group * count + j for group, j in zip(batch.groups, batch.slot.tolist(), strict=True)]
        chances = torch.arange(1, count + 1, dtype=torch.float64)
        late = [chances.multinomial(1, generator=generator(seed, "surrogate/step", k)) for k in looks]
        step = torch.cat(late)
        x_s = batch.rollout.states[batch.image, step + 1].to(device_of(model.network))
        s = batch.rollout.times[step + 1]
        uniform = torch.stack([torch.rand((), generator=generator(seed, "surrogate/time", k)) for k in looks])
        low = s.clamp(min=config.surrogate_t_min)
        low = torch.where(low > s, low, torch.lerp(s, torch.full_like(s, END), 0.05))
        tau = drawn_times(low, torch.full_like(low, END), uniform)
        eps = torch.cat([noise(seed, "surrogate/noise", [k], x_s.shape[1:]) for k in looks]).to(x_s)
        x_tau, u = noisy_target(x_s, eps, model.schedule(s), model.schedule(tau), model.kind)
        return Noised(x_tau, tau, u, (step + 1) / count)

    def _error(self, policy: Policy, role: str, rows: Noised, cond: Any) -> tuple[Tensor, Tensor]:
        """(mean (out - u)^2 (B,), out)."""
        out = self.method.predicted(policy.role(role), rows.x_tau, rows.tau, cond).out
        return mean((out - rows.u).square()), out
