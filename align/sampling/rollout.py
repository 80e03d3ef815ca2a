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
    begun: "Tensor | None" = None,
) -> "Trajectory":
    """Prompts to latents, as the config says: encode, draw x_T (stream "x_T" of rng), guide, integrate.

    `denoiser` is a role of the policy, unguided. grad: default no gradient; x_T: (B, C, h, w) standard normal instead
    of the drawn one; num_calls: end after so many network calls, and read x0_hat, what the last one predicts; step: a
    step rule in place of the block's; cond: the prompts as they are encoded already, also with a graph; begun: the
    state (B, C, h, w) that `begin` makes. The result's x0 (or x0_hat) goes to `model.codec.decode`.
    """
    from samplers import NO_GRAD, Grid, sample

    cond = model.text.encode(prompts) if cond is None else cond
    dynamic = config.how.dynamic if _device(model).type != "meta" else None
    grid = config.grid(model)
    if num_calls is not None:
        grid = Grid(grid.times[: num_calls + 1], grid.init_scale)
    levers = config.levers
    if begun is not None or (
        levers is not None and levers.any and grad is not None and grad is not NO_GRAD and num_calls is None
    ):
        x = (
            begin(config, model, denoiser, prompts, rng, x_T=x_T, cond=cond)
            if begun is None
            else begun.to(_device(model))
        )
        grid = Grid(grid.times[config.num_calls - config.last_k :], grid.init_scale)
    else:
        x = (_noise(config, model, prompts, rng) if x_T is None else x_T) * grid.init_scale
    return sample(
        config.guided(
            denoiser, config.unprompted(model.text), judge=dynamic.judge(model, prompts) if dynamic else None
        ),
        x,
        grid,
        cond,
        step=config.step() if step is None else step,
        eta=config.rule_eta() if step is None else None,
        grad=NO_GRAD if grad is None else grad,
        keep=keep,
        rng=rng,
    )


def begin(
    config: SamplingConfig,
    model: "DiffusionModel",
    denoiser: "Denoiser",
    prompts: Sequence[str],
    rng: "Rng",
    *,
    x_T: "Tensor | None" = None,
    cond: Any = None,
) -> "Tensor":
    """(B, C, h, w): the state where the block's window begins, without gradient, as its levers say."""
    cond, grid = model.text.encode(prompts) if cond is None else cond, config.grid(model)
    x = (_noise(config, model, prompts, rng) if x_T is None else x_T) * grid.init_scale
    return prefixed(config, denoiser, config.unprompted(model.text), x, grid, cond)


def _noise(config: SamplingConfig, model: "DiffusionModel", prompts: Sequence[str], rng: "Rng") -> "Tensor":
    import torch

    shape = (len(prompts), *model.latent_shape(config.image_size))
    return rng.normal("x_T", torch.empty(shape, device=_device(model)))


def _device(model: "DiffusionModel") -> Any:
    from align.models._base import device_of

    return device_of(model.network)
