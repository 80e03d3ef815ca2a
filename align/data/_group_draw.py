"""One process's part of an on-policy rollout: images drawn, rewarded, and as much of their way kept as is wanted."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from align.data._group_rows import Rollout
from align.data._wanted import Wanted
from align.data._workplace import Workplace
from align.models._base import device_of
from align.sampling import rollout
from samplers import Rng, Windowed


class Plan(NamedTuple):
    """What all processes have agreed on for one rollout."""

    prompts: Sequence[str]
    """One an image."""
    groups: Tensor
    indices: Tensor
    number: int
    steps: Sequence[bool]
    """Which of the rollout's steps are inside the window."""


class Times(NamedTuple):
    """Seconds: drawing and decoding, and waiting for rewards."""

    rollout: float
    reward: float


def draw(
    plan: Plan,
    rows: range,
    around: Workplace,
    wanted: Wanted,
    *,
    size: int,
    shared_noise: bool,
    on_x0_hat: bool,
    overlap: bool,
) -> tuple[Rollout, Times]:
    """Images `rows` of the plan, `size` at once. With `overlap` rewards are asked for in a thread of their own, while
    the next images are drawn."""
    started, parts, waiting = time.perf_counter(), [], 0.0
    with ThreadPoolExecutor(1) as pool:
        asked: list[Any] = []
        for start in range(rows.start, rows.stop, size):
            chosen = range(start, min(start + size, rows.stop))
            part, images = _draw(plan, chosen, around, wanted, shared_noise=shared_noise, on_x0_hat=on_x0_hat)
            ask = _asking(around, images, part.prompts)
            parts.append(part)
            began = time.perf_counter()
            asked.append(pool.submit(ask) if overlap else ask())
            waiting += time.perf_counter() - began
        began = time.perf_counter()
        scores = [found.result() if isinstance(found, Future) else found for found in asked]
        waiting += time.perf_counter() - began
    whole = Rollout.together([part._replace(scores=found) for part, found in zip(parts, scores, strict=True)])
    return whole, Times(time.perf_counter() - started - waiting, waiting)


@torch.no_grad()
def _draw(
    plan: Plan, rows: range, around: Workplace, wanted: Wanted, *, shared_noise: bool, on_x0_hat: bool
) -> tuple[Rollout, Tensor]:
    """(images' latents and way, without scores; the pixels that are rewarded)."""
    model, sampling, part = around.model, around.sampling, slice(rows.start, rows.stop)
    prompts, groups, indices = list(plan.prompts[part]), plan.groups[part], plan.indices[part]
    device = device_of(model.network)
    like = torch.empty(len(rows), *model.latent_shape(sampling.image_size), device=device)
    start = Rng(around.seed, (groups if shared_noise else indices).tolist(), plan.number)
    found = rollout(
        sampling,
        model,
        around.policy.role(wanted.role),
        prompts,
        Rng(around.seed, indices.tolist(), plan.number),
        x_T=start.normal("group/x_T" if shared_noise else "x_T", like),
        step=Windowed(sampling.law(), plan.steps) if wanted.transitions else None,
        keep="all" if wanted.transitions else "states" if wanted.states else "last",
    )
    pixels = model.codec.decode(found.x0_hat if on_x0_hat else found.x0)
    images = (pixels.float() * 255).round() / 255  # what is judged is what would be seen
    empty = torch.empty(len(rows), 0)
    states = log_probs = means = empty
    times = torch.empty(0, dtype=torch.float64)
    if wanted.transitions:
        inside = [i for i, flag in enumerate(plan.steps) if flag]
        first, last = inside[0], inside[-1]
        states = torch.stack(found.states[first : last + 2], 1).cpu()
        pairs = [(found.transitions[i], found.states[i + 1]) for i in inside]
        log_probs = torch.stack([step.log_prob(x).cpu() for step, x in pairs], 1)
        times = found.times[first : last + 2]
        if wanted.means:
            means = torch.stack([step.mean for step, _ in pairs], 1).cpu()
    elif wanted.states:
        states, times = torch.stack(list(found.states), 1).cpu(), found.times
    x0 = empty if wanted.transitions or wanted.states else found.x0.cpu()
    return Rollout(prompts, groups, indices, {}, x0, states, log_probs, means, times), images


def _asking(around: Workplace, images: Tensor, prompts: Sequence[str]) -> Callable[[], dict[str, Tensor]]:
    def ask() -> dict[str, Tensor]:
        with torch.no_grad():  # a thread has a mode of its own
            return {label: scores.cpu() for label, scores in around.rewards(images, prompts).items()}

    return ask
