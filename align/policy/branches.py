"""Guidance whose branches have adapters of their own (`guidance.negative`): the unprompted one is what to go away from.

    out = out_u + w (out_c - out_u)      out_c: {default: 1},  out_u: {default: a, negative: b}

Diffusion-NPO (arXiv 2505.11245) trains `negative` on swapped pairs; autoguidance (Karras et al., arXiv 2406.02507) puts
a weaker or earlier adapter there. Adapters are additive, so that both branches are one network, called once for each.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from align.policy.mix import Mixer

MAIN, NEGATIVE = "default", "negative"
"""What a recipe's own adapter is called, and one that is trained on what is not wanted."""


def opposite(
    own: Mapping[str, float], wanted: Mapping[str, float], negative: str = NEGATIVE
) -> dict[str, float] | None:
    """The adapters of the unprompted branch beside a prompted one of `own`: of these `wanted[default]` times, and
    `wanted[negative]` times the adapter that is called `negative`. None: both branches are the same network."""
    weights = {name: wanted.get(MAIN, 0.0) * weight for name, weight in own.items()}
    weights[negative] = weights.get(negative, 0.0) + wanted.get(NEGATIVE, 0.0)
    weights = {name: weight for name, weight in weights.items() if weight != 0}
    return None if weights == {name: weight for name, weight in own.items() if weight != 0} else weights


@dataclass(frozen=True)
class Branch:
    """A denoiser whose calls are made with a mixer's adapters at weights of their own."""

    mixer: Mixer
    denoiser: Any
    weights: Mapping[str, float]

    @property
    def schedule(self) -> Any:
        return self.denoiser.schedule

    @property
    def kind(self) -> Any:
        return self.denoiser.kind

    def __call__(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        with self.mixer.entered(self.weights):
            return self.denoiser(x_t, t, cond)


@dataclass(frozen=True)
class Branched:
    """A denoiser that brings the one of guidance's other branch along."""

    denoiser: Any
    other: Any
    base: Any

    @property
    def schedule(self) -> Any:
        return self.denoiser.schedule

    @property
    def kind(self) -> Any:
        return self.denoiser.kind

    @property
    def rescale(self) -> Any:
        return self.denoiser.rescale

    def beside(self, name: str) -> Any:
        """As a role's: the base."""
        return self.base

    def opposite(self, negative: Any) -> Any:
        """As a role's; whatever the sampling block says, this is the other branch."""
        return self.other

    def __call__(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        return self.denoiser(x_t, t, cond)
