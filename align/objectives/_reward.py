"""What the objectives share that send a reward's gradient into the model: latents in, the reward's loss out.

    L = -r,   |r - target|,   or   max(0, margin - r),        r: the rewards put together (rewards/_combine.py)

Each of them then is a choice of the steps that carry the gradient and of the latents that the reward is read on.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from align.models._small_decoder import small_codec
from align.objectives._base import Parts
from align.policy.roles import Policy
from align.registry import ComponentConfig
from align.sampling import SamplingConfig, rollout
from rewards._latents import Undecoded
from samplers import Rng

Gather = Callable[[Tensor], Tensor]


class RewardObjectiveConfig(ComponentConfig):
    """The form of the loss."""

    needs_gradient: ClassVar[bool] = True
    decodes: ClassVar[bool] = True
    target: float | None = None
    """Minimise |r - target| in place of -r."""
    margin: float | None = None
    """Minimise max(0, margin - r) in place of -r: images that are good enough pull no further."""
    scale: float = Field(1.0, gt=0)
    """Factor of the loss: it acts with clipping and beside other terms, while Adam's steps do not depend on it."""

    @model_validator(mode="after")
    def _one_form(self) -> "RewardObjectiveConfig":
        if self.target is not None and self.margin is not None:
            raise ValueError("target and margin are two forms of the loss. Set one of them.")
        return self


class RewardObjective:
    """Base of the objectives that differentiate a reward."""

    def __init__(self, config: Any, parts: Parts):
        self.config = config
        self.model, self.sampling, self.rewards, self.seed = parts.model, parts.sampling, parts.rewards, parts.seed
        self._scores: list[Tensor] = []
        source = getattr(getattr(parts.sampling, "levers", None), "decoder", None)
        self.decoder = None if source is None else small_codec(source, parts.model)

    def undecoded(self, x0: Tensor) -> Undecoded:
        """Latents (B, ...) as the rewards take them."""
        return Undecoded(x0, self.model.codec, self.decoder)

    def losses(self, x0: Tensor, prompts: Sequence[str], *, observed: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
        """Latents (B, ...) -> losses (B,) with graph, and the rewards that they come from, as metrics.

        `observed`: the rewards' normalisation is to follow these scores.
        """
        terms, total, metrics = self.rewards.score(self.undecoded(x0), prompts)
        if observed:
            self._scores.append(torch.stack(list(terms.values()), 1))
        if self.config.target is not None:
            losses = (total - self.config.target).abs()
        elif self.config.margin is not None:
            losses = (self.config.margin - total).relu()
        else:
            losses = -total
        said = {f"reward/{label}": scores for label, scores in terms.items()} | {"reward/total": total.detach()}
        return self.config.scale * losses, said | metrics

    def before_update(self, policy: Policy, micro_batches: Sequence[Any], gather: Gather) -> None:
        """Rewards that are normalised by what the model scores need scores before they have a first total."""
        if self.rewards.normaliser.ready:
            return
        for batch in micro_batches:
            rng = Rng(self.seed, batch.indices, batch.step)
            with torch.no_grad():
                x0 = rollout(self.sampling, self.model, policy.role("train"), batch.prompts, rng).x0
                terms = self.rewards(self.undecoded(x0), batch.prompts)
            self._scores.append(torch.stack(list(terms.values()), 1))
        self._observe(gather)

    def after_update(self, gather: Gather) -> None:
        """The normalisation follows the scores of the whole update, of all processes."""
        self._observe(gather)

    def _observe(self, gather: Gather) -> None:
        scores, self._scores = self._scores, []
        if self.rewards.config.normalise != "none":  # else nothing has to be sent
            none = torch.empty(0, len(self.rewards.weights))
            self.rewards.normaliser.observe(gather(torch.cat(scores) if scores else none))

    def state_dict(self) -> dict[str, Any]:
        return self.rewards.normaliser.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rewards.normaliser.load_state_dict(state)


def windowed(sampling: Any, window: str, **settings: Any) -> tuple[Any, list[tuple[str, str]]]:
    """The sampling block with the objective's own gradient window in place of the recipe's, or what is in its way:
    (block, [(key, what is wrong)])."""
    if sampling is None:
        return None, []
    said = sampling.model_dump() | {"window": window} | settings
    try:
        return SamplingConfig(**said), []
    except ValidationError as error:
        return None, [
            (f"sampling.{e['loc'][-1]}", str(e.get("ctx", {}).get("error", e["msg"]))) for e in error.errors()
        ]
