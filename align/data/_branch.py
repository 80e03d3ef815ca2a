"""One branching rollout: at each step the policy draws several candidates for the next state, and a judge orders them.

With `guide` the winner is moved before it is taken (TailorPO-G, Ren et al., arXiv 2502.01667, in our form):

    x_w + kappa std sqrt(D) g/|g|,   g = grad over x_w of judge(decode(x0_hat(x_w)))

which is kappa times as long as the step's own noise; it is scored again, and stays where it was if that is not higher.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from align.data._workplace import Workplace
from align.errors import UserError
from align.models._base import device_of
from samplers import Rng, generator, noisy, split

Judge = Callable[[Tensor, tuple[str, ...], Tensor], Tensor]
"""(images (n, 3, H, W) in [0, 1], n prompts, t ()) -> scores (n,), higher is better."""


class Rows(NamedTuple):
    """Transitions x_t -> x_s, one a row; tensors on the CPU."""

    x_t: Tensor
    """(n, C, h, w)"""
    x_w: Tensor
    """(n, C, h, w): the winning x_s."""
    x_l: Tensor
    t: Tensor
    """(n,) float64"""
    s: Tensor
    kept: Tensor
    """(n,) float32, 0 or 1: whether the judge saw a difference."""
    gap: Tensor
    """(n,) float32: the difference that `gap` is held against."""
    prompt: Tensor
    """(n,) int64: number of the prompt's sample."""
    scores: Tensor
    """(n, 2) float64: the winner's and the loser's."""

    def at(self, rows: Any) -> "Rows":
        return Rows(*(tensor[rows] for tensor in self))


def judged(config: Any, rows: Rows) -> Rows:
    """The rows of a whole rollout with their differences, and which of them are trained on."""
    if config.gap_in == "probability":
        p = (rows.scores / config.temperature).softmax(1)
        gap = p[:, 0] - p[:, 1]
    else:
        gap = torch.zeros(len(rows.t), dtype=torch.float64)
        for t in rows.t.unique():
            own = rows.t == t
            spread = rows.scores[own].std(correction=0)
            gap[own] = (rows.scores[own, 0] - rows.scores[own, 1]) / spread.clamp(min=torch.finfo(gap.dtype).tiny)
    return rows._replace(kept=(gap > config.gap).float(), gap=gap.float())


def branched(config: Any, around: Workplace) -> list[int]:
    """The steps that are branched: those from `first_step` on that have noise."""
    sampling, schedule = around.sampling, around.policy.role("train").schedule
    alphas, sigmas = schedule(sampling.grid(around.model).times)
    zero, rule = torch.zeros(1), noisy(sampling.law())
    steps = [
        i
        for i in range(config.first_step, len(alphas) - 1)
        if not rule(zero, zero, *(x[j] for j in (i, i + 1) for x in (alphas, sigmas))).deterministic
    ]
    if not steps:
        raise UserError(
            f"data.first_step={config.first_step}: of the {len(alphas) - 1} steps none from there on has noise (a grid "
            "that ends at the image takes its last step without), so none has candidates. Lower data.first_step, or "
            "raise sampling.num_steps."
        )
    return steps


class _Step(NamedTuple):
    """What is needed to show a state at the end of a step to the judge."""

    denoiser: Any
    judge: Judge
    decode: Callable[[Tensor], Tensor]
    s: Tensor
    level: tuple[Tensor, Tensor]
    last: bool

    def seen(self, x: Tensor, cond: Any, prompts: tuple[str, ...]) -> tuple[Tensor, Tensor | None]:
        """(scores (n,), the network's output at x, which the next step starts from, or None at the last)."""
        if self.last:
            return self.judge(self.decode(x), prompts, torch.zeros_like(self.s)), None
        out = self.denoiser(x, self.s, cond)
        images = split(out, x, *self.level, self.denoiser.kind)[0]
        return self.judge(self.decode(images), prompts, self.s), out


@torch.no_grad()
def branch(config: Any, around: Workplace, judge: Judge, batch: Any) -> Rows:
    """One branching rollout of a batch of prompts; see align/data/rollouts.py. Its pairs are still to be `judged`."""
    model, sampling, b, k = around.model, around.sampling, len(batch), config.num_candidates
    rng = Rng(around.seed, batch.indices)
    denoiser = sampling.guided(around.policy.role("train"), sampling.unprompted(model.text))
    cond, grid = model.text.encode(batch.prompts), sampling.grid(model)
    repeated, conds = tuple(prompt for prompt in batch.prompts for _ in range(k)), cond.repeat(k)
    alphas, sigmas = denoiser.schedule(grid.times)
    device = device_of(model.network)
    x = rng.normal("x_T", torch.empty(b, *model.latent_shape(sampling.image_size), device=device)) * grid.init_scale
    rule = noisy(sampling.law())
    out, last, found = denoiser(x, grid.times[0], cond), len(grid.times) - 2, []
    for i, (t, s) in enumerate(zip(grid.times[:-1], grid.times[1:], strict=True)):
        x0_hat, eps = split(out, x, alphas[i], sigmas[i], denoiser.kind)
        step = rule(x0_hat, eps, alphas[i], sigmas[i], alphas[i + 1], sigmas[i + 1])
        if i < config.first_step or step.deterministic:
            x = step.sample(None if step.deterministic else rng.normal(f"step/{i}", x))
            out = denoiser(x, s, cond) if i < last else out
            continue
        noises = torch.stack([rng.normal(f"candidate/{i}/{j}", x) for j in range(k)], 1)
        candidates = (step.mean[:, None] + step.std * noises).flatten(0, 1)  # a sample's k side by side
        shown = _Step(denoiser, judge, model.codec.decode, s, (alphas[i + 1], sigmas[i + 1]), i == last)
        scores, outs = shown.seen(candidates, conds, repeated)
        scores, grouped = scores.view(b, k), candidates.unflatten(0, (b, k))
        outs = None if outs is None else outs.unflatten(0, (b, k))
        best, worst, rows = scores.argmax(1), scores.argmin(1), torch.arange(b, device=device)
        x_l, both = grouped[rows, worst], torch.stack([scores.amax(1), scores.amin(1)], 1).double()
        if config.guide:
            length = config.guide * step.std.to(x)
            grouped, both, outs = _guided(shown, grouped, both, outs, best, length, cond, batch.prompts)
        times = [time.expand(b) for time in (t, s)]
        nothing, number = torch.zeros(b), torch.tensor(batch.indices)
        found.append([v.cpu() for v in (x, grouped[rows, best], x_l, *times, nothing, nothing, number, both)])
        drawn = [int(torch.randint(k, (), generator=generator(around.seed, f"continue/{i}", j))) for j in batch.indices]
        chosen = best if config.continue_from == "winner" else torch.tensor(drawn).to(device)
        x = grouped[rows, chosen]
        out = out if outs is None else outs[rows, chosen]
    return Rows(*(torch.stack(column, 1).flatten(0, 1) for column in zip(*found, strict=True)))


def _guided(
    shown: _Step,
    grouped: Tensor,
    both: Tensor,
    outs: Tensor | None,
    best: Tensor,
    length: Tensor,
    cond: Any,
    prompts: tuple[str, ...],
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Candidates (b, k, ...), their best and worst scores (b, 2) and outputs, the winners moved where that is better.
    length: () of the move, over sqrt(D)."""
    rows = torch.arange(len(best), device=best.device)
    x_w = grouped[rows, best].detach().requires_grad_()
    with torch.enable_grad():
        scores, _ = shown.seen(x_w, cond, prompts)
        (gradient,) = torch.autograd.grad(scores.sum(), x_w)
    norm = gradient.flatten(1).norm(dim=1).view(-1, *[1] * (gradient.ndim - 1))
    direction = torch.where(norm > 0, gradient / norm.clamp(min=torch.finfo(norm.dtype).tiny), 0.0)
    moved = x_w.detach() + length * x_w[0].numel() ** 0.5 * direction
    again, out = shown.seen(moved, cond, prompts)
    higher = again.double() > both[:, 0]
    mask = higher.view(-1, *[1] * (moved.ndim - 1))
    grouped = grouped.index_put((rows, best), torch.where(mask, moved, grouped[rows, best]))
    if outs is not None and out is not None:
        outs = outs.index_put((rows, best), torch.where(mask, out, outs[rows, best]))
    return grouped, torch.stack([torch.where(higher, again.double(), both[:, 0]), both[:, 1]], 1), outs
