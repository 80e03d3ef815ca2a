"""Rollouts: x_T to x0 along a grid (`sample`), differentiable as a GradPolicy says, and back again (`invert`).

    for each t -> s of the grid:   (x0, eps) = split(denoiser(x_t, t, cond));   x_s ~ rule(x0, eps, t, s)

Coefficients are 0-dim CPU tensors (see `samplers.schedule`), so a rollout never waits for the device.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from samplers.ddim import ddim
from samplers.denoiser import Denoiser
from samplers.grad import NO_GRAD, GradPolicy, full
from samplers.grids import Grid
from samplers.leapfrog import Leapfrog
from samplers.noise import Rng
from samplers.prediction import Prediction, row, solve, split
from samplers.rewind import rewind
from samplers.schedule import Schedule
from samplers.transition import StepRule, Transition


@dataclass(frozen=True)
class Trajectory:
    """What was kept of a rollout. times: (M,) float64 of the kept `states`, each (B, ...), in the order of travel.

    x0_hat: (B, ...), the last network call's data prediction, with its graph. kept: which calls carried gradient.
    x0_hats and transitions, one per network call, are filled by keep="all" only.
    """

    times: Tensor
    states: tuple[Tensor, ...]
    x0_hat: Tensor
    kept: tuple[bool, ...]
    x0_hats: tuple[Tensor, ...] = ()
    transitions: tuple[Transition, ...] = ()

    @property
    def x0(self) -> Tensor:
        """The state at the smallest kept time, (B, ...): the sample, or what an inversion started from."""
        return self.states[int(self.times.argmin())]

    @property
    def x_T(self) -> Tensor:
        """The state at the largest kept time, (B, ...): an inversion's result. Needs keep="states" after `sample`."""
        if len(self.states) < 2:
            raise ValueError('this trajectory kept its last state only: sample with keep="states" to have x_T')
        return self.states[int(self.times.argmax())]


def sample(
    denoiser: Denoiser,
    x_T: Tensor,
    grid: Grid,
    cond: Any,
    *,
    step: StepRule | type[StepRule] = ddim,
    eta: float | None = None,
    grad: GradPolicy = NO_GRAD,
    keep: Literal["last", "states", "all"] = "last",
    rng: Rng | None = None,
) -> Trajectory:
    """Integrate from grid.times[0] to grid.times[-1].

    x_T: (B, ...) latents at times[0], already scaled: standard normal noise times grid.init_scale.
    eta: for the rules that take one; None leaves their own default (`ddim` 0, `euler_ancestral` 1).
    rng: needed by stochastic steps (streams "step/0", "step/1", ...) and by random gradient windows (stream "grad").
    """
    alphas, sigmas = denoiser.schedule(grid.times)
    num_steps = len(grid.times) - 1
    kept = grad.decide(num_steps, rng.shared("grad") if rng else None)
    rule = bind(step, eta)
    guided = denoiser.begin(grid.times) if hasattr(denoiser, "begin") else None  # type: ignore[attr-defined]
    states, x0_hats, transitions = [x_T], [], []

    def predict(i: int, x: Tensor, how: GradPolicy = grad) -> tuple[Tensor, Tensor]:
        call = denoiser if guided is None else guided.at(i)
        out = _call(call, x, grid.times[i], cond, kept[i], how)
        if kept[i] and grad.scale is not None:
            out = out.detach() + grad.scale[i] * (out - out.detach())
        return split(out, x, alphas[i], sigmas[i], denoiser.kind)

    if grad.reversible and torch.is_grad_enabled() and any(kept):
        if not isinstance(rule, Leapfrog) or keep != "last":
            raise ValueError('a reversible chain is `Leapfrog`, and keeps its last state only: keep="last"')
        plain = replace(grad, checkpoint=False)
        x, x0_hat = rewind(lambda i, x: predict(i, x, plain), predict, x_T, alphas, sigmas, kept)
        return Trajectory(grid.times[-1:], (x,), x0_hat, tuple(kept))
    with torch.set_grad_enabled(torch.is_grad_enabled() and any(kept)):
        x = x_T
        for i in range(num_steps):
            x0_hat, eps = predict(i, x)
            transition = rule(x0_hat, eps, alphas[i], sigmas[i], alphas[i + 1], sigmas[i + 1])
            x = transition.sample(None if transition.deterministic else _noise(rng, i, x))
            states = [x] if keep == "last" else [*states, x]
            if keep == "all":
                x0_hats.append(x0_hat)
                transitions.append(transition)
    times = grid.times[-1:] if keep == "last" else grid.times
    return Trajectory(times, tuple(states), x0_hat, tuple(kept), tuple(x0_hats), tuple(transitions))


def bind(step: StepRule | type[StepRule], eta: float | None = None) -> Callable[..., Transition]:
    """A step rule ready for one trajectory: an instance if it remembers, with its eta if one is asked for."""
    rule: Callable[..., Transition] = step() if isinstance(step, type) else step
    return rule if eta is None else partial(rule, eta=eta)


def _call(denoiser: Any, x: Tensor, t: Tensor, cond: Any, kept: bool, grad: GradPolicy) -> Tensor:
    if not kept:
        with torch.no_grad():
            return denoiser(x, t, cond)
    return call_with_graph(denoiser, x.detach() if grad.detach_input else x, t, cond, recompute=grad.checkpoint)


def call_with_graph(denoiser: Denoiser, x: Tensor, t: Tensor, cond: Any, *, recompute: bool = True) -> Tensor:
    """One network call that carries gradient, as in `sample`: x (B, ...), t () or (B,) -> the raw output (B, ...).

    recompute: store only x, and call again in the backward pass.
    """
    # Older torch caches weights that autocast cast without grad, and a kept call that found them would have no gradient
    # (pytorch/pytorch#112583).
    torch.clear_autocast_cache()
    if recompute:
        # What varies from step to step is an argument: a closure would be recomputed with the last step's t.
        return checkpoint(denoiser, x, t, cond, use_reentrant=False)
    return denoiser(x, t, cond)


def _noise(rng: Rng | None, i: int, like: Tensor) -> Tensor:
    if rng is None:
        raise ValueError("a stochastic step needs the batch's rng: pass rng=Rng(seed, indices, step) to sample")
    return rng.normal(f"step/{i}", like)


@torch.no_grad()
def invert(denoiser: Denoiser, x0: Tensor, grid: Grid, cond: Any, *, iterations: int = 0) -> Trajectory:
    """DDIM run backwards: x0 (B, ...) at grid.times[-1] to x_T at grid.times[0]; keeps every state; no gradient.

    Each step solves the deterministic DDIM step t -> s for x_t, given x_s. The two predictions at t satisfy

        x_s = alpha_s x0_hat + sigma_s eps_hat,     out(x_t, t) = a x0_hat + b eps_hat,

    and only `out` is unknown. It is first read at x_s in place of x_t (DDIM inversion, first order), then `iterations`
    times again at the x_t found so far: the fixed point is exact (Pan et al., AIDI, arXiv 2309.04907; Meiri et al.,
    arXiv 2312.12540). Evaluating at t, not s, needs no network call at t = 0.
    """
    times = grid.times.flip(0)
    if not bool((times[1:] > times[:-1]).all()):
        raise ValueError("invert needs a grid of strictly decreasing times (not a doubled one)")
    alphas, sigmas = denoiser.schedule(times)
    if denoiser.kind is Prediction.SAMPLE and bool(sigmas[0] == 0):
        raise ValueError("an x0-predicting network says nothing of the noise at t = 0: end the grid at t = 1/T instead")
    states, x0_hat = [x0], x0
    for i in range(len(times) - 1):
        x_s = x_t = states[-1]
        for _ in range(1 + iterations):
            out = denoiser(x_t, times[i + 1], cond)
            x0_hat, eps = solve(
                out, x_s, alphas[i], sigmas[i], row(alphas[i + 1], sigmas[i + 1], denoiser.kind), denoiser.kind
            )
            x_t = ddim(x0_hat, eps, alphas[i], sigmas[i], alphas[i + 1], sigmas[i + 1]).mean
        states.append(x_t)
    return Trajectory(times, tuple(states), x0_hat, (False,) * (len(times) - 1))


@dataclass
class _Scripted:
    """A denoiser that returns given outputs, one a call: what is left of a rollout is its linear recursion."""

    schedule: Schedule
    kind: Prediction
    outs: list[Tensor]

    def __call__(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        return self.outs.pop(0)


def sensitivity(
    schedule: Schedule,
    kind: Prediction,
    grid: Grid,
    *,
    step: StepRule | type[StepRule] = ddim,
    eta: float | None = None,
) -> Tensor:
    """d x_end / d out_i along the latent recursion alone, network Jacobians left out: (num_steps,) float64.

    How much of a gradient each step's output receives: for DDIM-50 on Stable Diffusion's table it falls from 1.44 at
    the first step to 0.012 at the last. What noise a stochastic step draws does not matter; `eta` as in `sample`.
    """
    outs = [torch.zeros(1, 1, dtype=torch.float64, requires_grad=True) for _ in range(len(grid.times) - 1)]
    scripted = _Scripted(schedule, kind, list(outs))
    x_T = torch.zeros(1, 1, dtype=torch.float64)
    with torch.enable_grad():
        whole = GradPolicy(full().keep, checkpoint=False)
        end = sample(scripted, x_T, grid, None, step=step, eta=eta, grad=whole, rng=Rng(0, [0])).x0
        return torch.cat(torch.autograd.grad(end.sum(), outs, materialize_grads=True)).flatten()
