"""Diffusion-DPO: make the preferred image of a pair easier to denoise, and the other harder, than for the reference.

    L = -log sigmoid( -beta/2 [ (err(w) - err_ref(w)) - (err(l) - err_ref(l)) ] ),   err(y) = mean |out(y_t) - target|^2

Wallace et al., "Diffusion Model Alignment Using Direct Preference Optimization", arXiv 2311.12908, eq. 14, with their
T omega(lambda_t) in beta. Both images of a pair meet the same t, the same eps, the same noise of the autoencoder and
the same dropped prompt; the reference is the network without its adapter.

Conventions of beta that are in use, for latents of d numbers; log-ratios here are those of `paper`:

    paper      the line above                                       Wallace et al.: 5000 for SDXL
    diffusers  without the 1/2 (diffusers' example script)          its 2500 is our 5000
    sum        errors summed over the d numbers, with the 1/2       beta/d of the paper's
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from align.objectives._base import Loss, Parts
from align.objectives._losses import DPOForm, dpo, guard_factor, log_ratio_of_errors
from align.objectives._preference import (
    Alarm,
    Alarmed,
    PreferenceConfig,
    TimesConfig,
    described,
    dropped,
    error_scale,
    errors,
    noised,
    targets,
)
from align.objectives._sides import SidedConfig
from align.policy.roles import Policy
from samplers import Rng, generator


class DiffusionDPOConfig(SidedConfig, PreferenceConfig):
    """Diffusion-DPO's settings."""

    name: Literal["diffusion_dpo"] = "diffusion_dpo"
    beta: float = Field(default=5000.0, gt=0)
    """How closely the policy is held to the reference; larger is closer."""
    beta_convention: Literal["paper", "diffusers", "sum"] = "paper"
    """What `beta` means; the run prints it in all three."""
    form: DPOForm = "sigmoid"
    """sigmoid; hinge (SLiC); ipo, which does not run away from pairs that are won."""
    times: TimesConfig = TimesConfig()
    """At which times pairs are noised."""
    num_draws: int | None = Field(default=None, ge=1)
    """Draw t and noise of a pair from this many that are fixed for it, and keep the reference's errors at them: after
    the first visits no reference pass is run. Default: always new ones."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield from super().conflicts(recipe)
        data = recipe.get("data")
        if self.num_draws is not None and data is not None and not hasattr(data, "pairs"):
            yield ".num_draws", "keeps what the reference says of pairs that come again; these do not. Remove it."

    def paper_beta(self, numel: int) -> float:
        """`beta` in the paper's convention, for latents of `numel` numbers."""
        return self.beta * {"paper": 1.0, "diffusers": 2.0, "sum": float(numel)}[self.beta_convention]


class DiffusionDPO(Alarmed):
    """The objective: preference pairs in."""

    Config = DiffusionDPOConfig

    def __init__(self, config: DiffusionDPOConfig, parts: Parts):
        self.config, self.seed = config, parts.seed
        numel = torch.Size(parts.model.latent_shape()).numel()
        self.beta = config.paper_beta(numel)
        self.notes = [
            f"beta: {self.beta:g} in the paper's convention, {self.beta / 2:g} in diffusers' script, "
            f"{self.beta / numel:.4g} with errors summed over {numel} numbers"
        ]
        self.alarm = Alarm(config.alarm)
        self.reference: dict[int, tuple[float, float]] = {}  # draw -> the reference's errors

    def __call__(self, policy: Policy, batch: Any, context: Any = None) -> Loss:
        config = self.config
        x_t, t, goal, cond, draws = self._prepared(policy, batch)
        reference = self._reference_errors(policy, draws, x_t, t, goal, cond)
        residual = policy.role("train")(x_t, torch.cat([t, t]), cond) - goal
        error_w, error_l = error = errors(residual)
        if config.guard:
            f = guard_factor(*residual.detach().chunk(2)).to(error_l)
            error_l = f * error_l + (1 - f) * error_l.detach()
        role = policy.role("reference")
        scale = error_scale(config, role.schedule, role.kind, t).to(error_w)
        ratios = [scale * log_ratio_of_errors(e, r) for e, r in zip((error_w, error_l), reference, strict=True)]
        losses = dpo(*ratios, beta=self.beta, form=config.form)
        margin = self.beta * (ratios[0] - ratios[1])
        return Loss(losses, torch.ones_like(losses), described(margin, t, error, reference))

    def before_update(self, policy: Policy, micro_batches: Sequence[Any], gather: Callable[[Tensor], Tensor]) -> None:
        """With fixed draws: the reference's errors at those that are new, shared among the processes."""
        if self.config.num_draws is None:
            return
        found = [torch.empty(0, 3, dtype=torch.float64)]
        for batch in micro_batches:
            x_t, t, goal, cond, draws = self._prepared(policy, batch)
            if any(draw not in self.reference for draw in draws):
                numbers = torch.tensor(draws, dtype=torch.float64)
                pair = self._reference_errors(policy, [], x_t, t, goal, cond)
                found.append(torch.stack([numbers, *(e.double().cpu() for e in pair)], 1))
        for draw, winner, loser in gather(torch.cat(found)).tolist():
            self.reference.setdefault(int(draw), (winner, loser))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "reference": {str(k): list(v) for k, v in self.reference.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.reference = {int(k): (v[0], v[1]) for k, v in state["reference"].items()}

    def _prepared(self, policy: Policy, batch: Any) -> tuple[Tensor, Tensor, Tensor, Any, list[int]]:
        """x_t (2 b, ...), t (b,), the network's target (2 b, ...), Cond of 2 b rows, and each pair's draw."""
        role, pairs = policy.role("reference"), batch.load()
        pairs = pairs.swapped() if self.config.swapped else pairs
        draws = self._draws(batch)
        rng = Rng(self.seed, draws or batch.indices, batch.step)
        mean = pairs.winner.mean
        vae_noise, eps = rng.normal("vae", mean), rng.normal("eps", mean)
        x0 = pairs.winner.sample(vae_noise), pairs.loser.sample(vae_noise)
        t = self.config.times.draw(rng, role.schedule, mean)
        cond_w, cond_l = pairs.conds(dropped(rng, self.config.prompt_dropout))
        x_t = noised(role.schedule, x0, (eps, eps), t)
        return x_t, t, targets(role, x0, (eps, eps), t), cond_w.cat(cond_l), draws

    def _draws(self, batch: Any) -> list[int]:
        """The number of each row's fixed draw of t and noise; empty without."""
        n = self.config.num_draws
        if n is None:
            return []
        chosen = [int(torch.randint(n, (), generator=generator(self.seed, "draw", i))) for i in batch.indices]
        return [view * n + j for view, j in zip(batch.views, chosen, strict=True)]

    @torch.no_grad()
    def _reference_errors(
        self, policy: Policy, draws: Sequence[int], x_t: Tensor, t: Tensor, goal: Tensor, cond: Any
    ) -> tuple[Tensor, Tensor]:
        """(winners', losers'), (b,) each; from memory where all draws are known."""
        if draws and all(draw in self.reference for draw in draws):
            known = torch.tensor([self.reference[draw] for draw in draws], device=x_t.device)
            return known[:, 0], known[:, 1]
        return errors(policy.role("reference")(x_t, torch.cat([t, t]), cond) - goal)
