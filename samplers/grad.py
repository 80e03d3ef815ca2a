"""HOW to differentiate a rollout, apart from HOW to integrate it: which network calls carry gradient, and by what path.

    out_i = denoiser(x_t, t, cond)     kept: with a graph;  not kept: a constant (the output is detached)
    x_s   = rule(out_i, x_t)           the latent recursion: always in the graph of what it is made from

So not keeping step i cuts what its network contributes, and not the path of x_t past it. `detach_input` cuts the other
path: the call is kept, but not the gradient through its x_t, and the result is a plain sum of per-step terms.
Step 0 is the noisiest. Random laws draw once per trajectory from a generator that all rows and ranks share.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class GradPolicy:
    """keep: (num_steps, generator) -> one bool per network call. Vary the rest with `dataclasses.replace`.

    detach_input: the network sees x_t as a constant, the recursion keeps it (DRTune, arXiv 2405.00760).
    checkpoint: recompute each kept call in the backward pass; only its input x_t is stored.
    reversible: and not even that (`samplers.rewind`); for the step rule `Leapfrog`.
    scale: a factor for the gradient that reaches each call's output, len = num_steps (adjusted direct fine-tuning,
    Shen et al., arXiv 2311.07604, takes 1/|sensitivity|; see `samplers.sensitivity`). Values are not changed.
    """

    keep: Callable[[int, torch.Generator], Sequence[bool]]
    detach_input: bool = False
    checkpoint: bool = True
    scale: Sequence[float] | None = None
    reversible: bool = False

    def decide(self, num_steps: int, generator: torch.Generator | None) -> list[bool]:
        """The decision for one trajectory, checked: (num_steps,) bools. Random laws need the generator."""
        kept = [bool(flag) for flag in self.keep(num_steps, generator)]  # type: ignore[arg-type]
        if len(kept) != num_steps:
            raise ValueError(f"GradPolicy.keep gave {len(kept)} decisions for a trajectory of {num_steps} steps")
        if self.scale is not None and len(self.scale) != num_steps:
            raise ValueError(f"GradPolicy.scale has {len(self.scale)} factors for a trajectory of {num_steps} steps")
        return kept


def last(k: int) -> GradPolicy:
    """The last k steps (DRaFT-K, arXiv 2309.17400; k = num_steps is DRaFT). k = 0 keeps no graph at all."""

    def keep(num_steps: int, _: torch.Generator) -> list[bool]:
        _fits("last_k", k, num_steps)
        return _tail(num_steps - k, num_steps)

    return GradPolicy(keep)


def full() -> GradPolicy:
    """Every step, whatever their number: DRaFT, and the input gradients of ReNO (arXiv 2406.04312)."""
    return GradPolicy(lambda num_steps, _: [True] * num_steps)


def contiguous(low: int, high: int) -> GradPolicy:
    """The last K steps, K uniform on {low, ..., high}: truncation as in AlignProp's paper (arXiv 2310.03739)."""
    if not 0 <= low <= high:
        raise ValueError(f"contiguous({low}, {high}): the bounds must satisfy 0 <= low <= high")

    def keep(num_steps: int, generator: torch.Generator) -> list[bool]:
        _fits("high", high, num_steps)
        return _tail(num_steps - _randint(low, high, generator), num_steps)

    return GradPolicy(keep)


def bernoulli() -> GradPolicy:
    """Each step by itself, P(step i is kept) = (i + 1)/(N + 1), N/2 steps on average: AlignProp's 2023 code. Where none
    is (N!/(N + 1)^N of the draws: 22 % of two steps, 0.6 % of six) the last one is, or there would be no gradient."""

    def keep(num_steps: int, generator: torch.Generator) -> list[bool]:
        draw = torch.rand(num_steps, generator=_needed(generator))
        kept = (draw * (num_steps + 1) < torch.arange(1, num_steps + 1)).tolist()
        return kept if any(kept) else _tail(num_steps - 1, num_steps)

    return GradPolicy(keep)


def normal(mean: float = 42.0, std: float = 5.0) -> GradPolicy:
    """Steps i >= n, n = int(Normal(mean, std)) redrawn until 1 <= n < N: AlignProp's 2024 code, (42, 5) for N = 50."""

    def keep(num_steps: int, generator: torch.Generator) -> list[bool]:
        if not 1 <= mean < num_steps:  # else the redrawing need not end
            raise ValueError(
                f"normal(mean={mean}): the mean is a step number, it must be in [1, num_steps={num_steps})"
            )
        while True:
            first = int(mean + std * torch.randn((), generator=_needed(generator)).item())
            if 1 <= first < num_steps:
                return _tail(first, num_steps)

    return GradPolicy(keep)


def subset(k: int) -> GradPolicy:
    """k steps N//k apart, the first of them drawn uniformly among those that fit: DRTune (arXiv 2405.00760)."""
    if k < 1:
        raise ValueError(f"subset({k}): at least one step must carry gradient")

    def keep(num_steps: int, generator: torch.Generator) -> list[bool]:
        _fits("k", k, num_steps)
        stride = num_steps // k
        first = _randint(0, num_steps - 1 - (k - 1) * stride, generator)
        chosen = range(first, first + k * stride, stride)
        return [step in chosen for step in range(num_steps)]

    return GradPolicy(keep)


NO_GRAD = last(0)


def _tail(first: int, num_steps: int) -> list[bool]:
    return [step >= first for step in range(num_steps)]


def _randint(low: int, high: int, generator: torch.Generator) -> int:
    """Uniform on {low, ..., high}; on the CPU, so that no device has to be waited for."""
    return int(torch.randint(low, high + 1, (), generator=_needed(generator)))


def _fits(name: str, count: int, num_steps: int) -> None:
    if not 0 <= count <= num_steps:
        raise ValueError(
            f"{name}={count} with num_steps={num_steps}: gradients cannot flow through more steps than are taken. "
            f"Set {name} <= {num_steps}."
        )


def _needed(generator: torch.Generator | None) -> torch.Generator:
    if generator is None:
        raise ValueError("a random gradient window needs the batch's rng: pass rng=Rng(seed, indices, step) to sample")
    return generator
