"""Soft prompt: n tokens are learnt, from pictures or by a reward, and everything else stays as it is.

    pictures    L = |out(x_t, t, caption with the tokens) - u|^2,    x_t: a picture with noise, u: its target
    reward      L = -r(decode(x_0), prompt),    x_0 sampled for the prompt with the tokens behind it

Textual inversion: Gal et al., arXiv 2208.01618. gradient=zeroth calls no network backwards, so that memory is that of
inference and the base may be quantised: ZOODiP, Seo et al., arXiv 2503.14868, with its times and without its subspace
of directions; a reward may then be one without gradient. The unconditional row has no such token in it: untouched.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from align.errors import UserError
from align.models._base import device_of
from align.objectives._base import Loss, Parts
from align.objectives._reward import RewardObjective, RewardObjectiveConfig
from align.objectives._zeroth import estimate, surrogate
from align.policy.roles import Policy
from align.policy.soft_prompt import SoftPrompt
from align.sampling import rollout
from samplers import NO_GRAD, Rng, add_noise, call_with_graph, generator, target


class SoftPromptConfig(RewardObjectiveConfig):
    """What is learnt, from what, and how its gradient is had."""

    name: Literal["soft_prompt"] = "soft_prompt"
    token: str = Field(default="<learnt>", pattern=r"^\S+$")
    """The placeholder, as it is written in prompts; no word that the tokenizer knows."""
    init: str = Field(default="picture", min_length=1)
    """A word whose embedding the tokens start from."""
    num_tokens: int = Field(default=1, ge=1)
    """n, embeddings that the placeholder stands for."""
    learn_from: Literal["pictures", "reward"] = "reward"
    """Pictures of data.name=captioned, or the recipe's rewards."""
    caption: str | None = None
    """pictures: one caption for all, such as "a photo of <learnt>". Default: their own, with the placeholder in."""
    times: tuple[float, float] = (0.0, 1.0)
    """pictures: between which times t, 1 is pure noise, they are noised. ZOODiP takes 0.5 to 0.9."""
    gradient: Literal["backprop", "zeroth"] = "backprop"
    """Through the network, or from values along random directions alone."""
    num_directions: int = Field(default=2, ge=1)
    """zeroth: n, directions an update."""
    mu: float = Field(default=1e-3, gt=0)
    """zeroth: how far a direction is followed."""

    @property
    def needs_gradient(self) -> bool:  # type: ignore[override]
        return self.learn_from == "reward" and self.gradient == "backprop"

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        low, high = self.times
        if not 0 <= low < high <= 1:
            yield ".times", f"are {[low, high]}. Set 0 <= low < high <= 1."
        data, model = recipe.get("data"), recipe.get("model")
        pictures = self.learn_from == "pictures"
        if pictures and data is not None and not getattr(data, "has_images", False):
            yield ".learn_from", f"is pictures, and data.name={data.name} gives none. Use captioned."
        if not pictures and not recipe.get("rewards", True):
            yield "rewards", "are missing: the tokens are learnt by one. Add it, such as `rewards: {clip: {}}`."
        if pictures and self.caption is not None and self.token not in self.caption:
            yield ".caption", f"has no {self.token} in it. Write the placeholder where it is meant."
        if getattr(model, "offload_text", False):
            yield "model.offload_text", "is on, and the text encoder is what is trained. Set it to false."
        same = "is of the network before and after training, and both read the word as it was learnt"
        if recipe.get("evaluate") is not None:
            yield "evaluate", f"{same}. Set it to null; hooks.samples and hooks.panel draw prompts with it and without."
        for label, hook in (recipe.get("hooks") or {}).items():
            if getattr(hook, "compares", False):
                yield f"hooks.{label}", f"{same}. Remove it; hooks.panel watches rewards."


class SoftPromptObjective(RewardObjective):
    """The objective; what it trains is its own, and the run's adapter stays the identity."""

    Config = SoftPromptConfig

    def __init__(self, config: SoftPromptConfig, parts: Parts):
        super().__init__(config, parts)
        self.trainable = SoftPrompt.starting(parts.model, config.token, config.init, config.num_tokens)

    def __call__(self, policy: Policy, batch: Any, context: Any = None) -> Loss:
        rng, said = Rng(self.seed, batch.indices, batch.step), {}
        if self.config.learn_from == "pictures":
            losses = self._by(self._of_pictures(policy, batch, rng), rng)
            said = {"denoising": losses.detach()}
        else:
            losses = self._by(lambda: self._of_reward(policy, batch, rng, said), rng)
        return Loss(losses, torch.ones_like(losses), dict(said))

    def before_update(self, policy: Policy, micro_batches: Sequence[Any], gather: Any) -> None:
        if self.rewards is not None:
            super().before_update(policy, micro_batches, gather)

    def after_update(self, gather: Any) -> None:
        if self.rewards is not None:
            super().after_update(gather)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.rewards is None else super().state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.rewards is not None:
            super().load_state_dict(state)

    def _by(self, losses: Any, rng: Rng) -> Tensor:
        """(B,), with the gradient that the config asks for."""
        if self.config.gradient == "backprop":
            return losses()
        rows = self.trainable.rows

        def at(theta: Tensor) -> Tensor:
            with self.trainable.at(theta):
                return losses()

        names = [f"soft_prompt/{i}" for i in range(self.config.num_directions)]
        drawn = [torch.randn(rows.shape, generator=generator(self.seed, name, rng.step)) for name in names]
        base, gradient = estimate(at, rows.detach(), [z.to(rows) for z in drawn], self.config.mu)
        return surrogate(base, gradient, rows)

    def _of_pictures(self, policy: Policy, batch: Any, rng: Rng) -> Any:
        """() -> (B,): the denoising error, at the same noise and times each time that it is called."""
        prompts = [self.config.caption or prompt for prompt in batch.prompts]
        if not any(self.config.token in prompt for prompt in prompts):
            raise UserError(
                f"objective.token={self.config.token}: stands in none of these captions, such as {prompts[0]!r}. Write "
                "it into captions.jsonl, or set objective.caption."
            )
        with torch.no_grad():
            device = device_of(self.model.network)
            posterior = self.model.codec.encode(batch.images().to(device))
            x0 = posterior.sample(rng.normal("posterior", posterior.mean))
        eps = rng.normal("soft_prompt", x0)
        low, high = self.config.times
        drawn = [torch.rand(1, generator=generator(self.seed, "soft_prompt/t", i)) for i in batch.indices]
        t = low + (high - low) * torch.cat(drawn).to(x0)
        x_t = add_noise(self.model.schedule, x0, eps, t)
        u = target(x0, eps, *self.model.schedule(t), self.model.kind)  # type: ignore[call-arg]

        def losses() -> Tensor:
            cond = self.model.text.encode(prompts, grad=True)
            role, recompute = policy.role("reference"), self.sampling.checkpoint_steps and torch.is_grad_enabled()
            return (call_with_graph(role, x_t, t, cond, recompute=recompute) - u).float().square().flatten(1).mean(1)

        return losses

    def _of_reward(self, policy: Policy, batch: Any, rng: Rng, said: dict[str, Tensor]) -> Tensor:
        """(B,): the rewards' loss of samples for the prompts with the tokens behind them, judged by the prompts alone.
        What is observed and said is of the first call, where the tokens are as they stand."""
        cond = self.model.text.encode([f"{prompt} {self.config.token}" for prompt in batch.prompts], grad=True)
        grad = self.sampling.grad_policy() if torch.is_grad_enabled() else NO_GRAD
        role = policy.role("reference")
        x0 = rollout(self.sampling, self.model, role, batch.prompts, rng, grad=grad, cond=cond).x0
        losses, metrics = self.losses(x0, batch.prompts, observed=not said)
        for name, value in metrics.items():
            said.setdefault(name, value.detach())
        return losses
