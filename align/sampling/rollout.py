"""Prompts to latents, as a sampling block says."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from align.sampling.block import SamplingConfig
from align.sampling.levers import prefixed

if TYPE_CHECKING:
    from torch import Tensor

    from align.models._base import DiffusionModel
    from samplers import Denoiser, GradPolicy, Rng, StepRule, Trajectory


def rollout(
    config: SamplingConfig,
    model: "DiffusionModel",
    denoiser: "Denoiser",
    prompts: Sequence[str],
    rng: "Rng",
    *,
    grad: "GradPolicy | None" = None,
    x_T: "Tensor | None" = None,
    num_calls: int | None = None,
    step: "StepRule | type[StepRule] | None" = None,
    keep: Literal["last", "states", "all"] = "last",
    cond: Any = None,
) -> "Trajectory":
    """Prompts to latents, as the config says: encode, draw x_T (stream "x_T" of rng), guide, integrate.

    `denoiser` is a role of the policy, unguided. grad: default no gradient; x_T: (B, C, h, w) standard normal instead
    of the drawn one; num_calls: end after so many network calls, and read x0_hat, what the last one predicts; step: a
    step rule in place of the block's; cond: the prompts as they are encoded already, also with a graph. The result's x0
    (or x0_hat) goes to `model.codec.decode`.
    """
    import torch

    from samplers import NO_GRAD, Grid, sample

    cond = model.text.encode(prompts) if cond is None else cond
    dynamic = config.how.dynamic if next(model.network.parameters()).device.type != "meta" else None
    grid = config.grid(model)
    if num_calls is not None:
        grid = Grid(grid.times[: num_calls + 1], grid.init_scale)
    if x_T is None:
        device = next(model.network.parameters()).device
        x_T = rng.normal("x_T", torch.empty(len(prompts), *model.latent_shape(config.image_size), device=device))
    x_T, levers = x_T * grid.init_scale, config.levers
    if levers is not None and levers.any and grad is not None and grad is not NO_GRAD and num_calls is None:
        x_T, grid = prefixed(config, denoiser, model.text.encode([""]), x_T, grid, cond)
    return sample(
        config.guided(denoiser, model.text.encode([""]), judge=dynamic.judge(model, prompts) if dynamic else None),
        x_T,
        grid,
        cond,
        step=config.step() if step is None else step,
        eta=config.rule_eta() if step is None else None,
        grad=NO_GRAD if grad is None else grad,
        keep=keep,
        rng=rng,
    )
