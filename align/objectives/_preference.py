"""What the preference objectives share: times, the scale of an error at a time, dropped prompts, metrics.

An error is |out - target|^2 in the network's own prediction, mean over dimensions. At a fixed x_t the map from `out` to
the predicted eps and x0 is linear (samplers/prediction.py), so an error in another space is the same error times

    eps: (alpha_t/det)^2     x0: (sigma_t/det)^2     det = alpha_t b - sigma_t a for the row (a, b) of the prediction

v on a VP table: |d eps|^2 = alpha_t^2 |d v|^2; a flow: |d eps|^2 = (1 - t)^2 |d v|^2. The factor multiplies beta at
each t: the same beta in another space is another weighting of the times.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from align.errors import UserError
from align.registry import ComponentConfig
from samplers import Denoiser, Prediction, Rng, Schedule, add_noise, generator, row, shift, target

PATIENCE = 10  # updates in a row above the alarm
TURBO = (249, 499, 749, 999)
NUM_BINS = 4


class TimesConfig(ComponentConfig):
    """At which times t pairs are noised."""

    law: Literal["uniform", "logit_normal", "turbo"] = "uniform"
    """uniform: every level of a table alike, or t in (0, 1) on a flow. logit_normal: t = sigmoid(mean + std n), Esser
    et al., arXiv 2403.03206. turbo: the four levels that SDXL-Turbo and SD-Turbo sample at."""
    mean: float = 0.0
    """law=logit_normal."""
    std: float = Field(default=1.0, gt=0)
    """law=logit_normal."""
    shift: float = Field(default=1.0, gt=0)
    """Flow only: t -> shift t/(1 + (shift - 1) t)."""

    def draw(self, rng: Rng, schedule: Schedule, like: Tensor) -> Tensor:
        """One t a row of `like`, (b,) float64 on its device."""
        normal = rng.normal("t", torch.empty(len(like), 1, dtype=torch.float64, device=like.device))[:, 0]
        uniform = torch.special.ndtr(normal)
        levels: int | None = getattr(schedule, "num_train", None)
        if self.law == "turbo":
            chosen = torch.tensor(TURBO, dtype=torch.float64, device=like.device)[(uniform * 4).long().clamp(max=3)]
            return (chosen + 1) / 1000
        t = torch.sigmoid(self.mean + self.std * normal) if self.law == "logit_normal" else uniform
        if levels is not None:
            return ((t * levels).floor().clamp(max=levels - 1) + 1) / levels
        return shift(t, self.shift)


class NoisedConfig(ComponentConfig):
    """Settings of an objective that trains on noised images that were judged."""

    prompt_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of rows that are seen without their prompt, both images of a pair alike."""
    loss_space: Literal["native", "eps", "x0"] = "native"
    """In what the errors are measured: the network's own prediction, eps or x0."""
    t_weighting: Literal["none", "snr", "min_snr"] = "none"
    """snr: a further factor of the errors, alpha_t^2/sigma_t^2. min_snr: the loss of Hang et al., arXiv 2303.09556,
    min(snr, 5) times the error of x0, which is min(snr, 5)/snr times that of eps: the same whatever the network
    predicts, in place of loss_space."""
    alarm: float | None = Field(default=2.0, gt=1)
    """End the run when the winners' error has been this many times the reference's in 10 updates in a row."""


class PreferenceConfig(NoisedConfig):
    """Settings of an objective that trains on noised pairs."""

    guard: bool = False
    """Scale the loser's gradient so that no pair raises its winner's error, to first order."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield from masks_apart(recipe)
        data = recipe.get("data")
        if data is not None and not getattr(data, "has_pairs", False):
            yield "data", "holds no pairs of images. Use `data: {name: preferences, pairs: FOLDER}`."


APART = "winner and loser would be seen through different masks, and equal images would pull apart"
UNLIKE = "the policy would be seen through a mask and what it is measured against, the reference, through none"


def masks_apart(recipe: Mapping[str, Any], why: str = APART) -> Iterator[tuple[str, str]]:
    """Dropout, under which what is compared is not seen alike."""
    adapter = recipe.get("adapter")
    if adapter is not None and adapter.dropout > 0:
        yield "adapter.dropout", f"is {adapter.dropout}: {why}. Set it to 0."


def noised(schedule: Schedule, x0: tuple[Tensor, Tensor], eps: tuple[Tensor, Tensor], t: Tensor) -> Tensor:
    """(winner, loser) at the same t: (b, ...) twice -> x_t (2 b, ...), winners first."""
    return torch.cat([add_noise(schedule, x, e, t) for x, e in zip(x0, eps, strict=True)])


def targets(denoiser: Denoiser, x0: tuple[Tensor, Tensor], eps: tuple[Tensor, Tensor], t: Tensor) -> Tensor:
    """What the network should say at `noised`, (2 b, ...)."""
    alpha, sigma = denoiser.schedule(t)
    return torch.cat([target(x, e, alpha, sigma, denoiser.kind) for x, e in zip(x0, eps, strict=True)])


def errors(residual: Tensor) -> tuple[Tensor, Tensor]:
    """out - target, (2 b, ...) -> mean squares (winners (b,), losers (b,)), float32 or wider."""
    wide = residual.to(torch.promote_types(residual.dtype, torch.float32))
    winner, loser = wide.square().flatten(1).mean(1).chunk(2)
    return winner, loser


def error_scale(config: NoisedConfig, schedule: Schedule, kind: Prediction, t: Tensor) -> Tensor:
    """The factor of loss_space and t_weighting at t, (b,) float64."""
    alpha, sigma = schedule(t)
    a, b = row(alpha, sigma, kind)
    det = alpha * b - sigma * a
    if config.t_weighting == "min_snr":  # min(snr, 5) (sigma/det)^2, without the quotient that is 0/0 at snr = 0
        return torch.minimum(alpha.square(), 5.0 * sigma.square()) / det.square()
    factor = torch.ones_like(alpha)
    if config.loss_space != "native":
        factor = ((alpha if config.loss_space == "eps" else sigma) / det).square()
    return factor * (alpha / sigma).square() if config.t_weighting == "snr" else factor


def dropped(rng: Rng, share: float) -> list[bool]:
    """Which rows are seen without their prompt."""
    if share == 0:
        return [False] * len(rng.indices)
    return [float(torch.rand((), generator=generator(rng.seed, "dropout", int(i)))) < share for i in rng.indices]


def described(margin: Tensor, t: Tensor, error: Sequence[Tensor], reference: Sequence[Tensor]) -> dict[str, Tensor]:
    """Metrics of one micro-batch, detached.

    margin: beta z, (b,), also by quarters of t; error, reference: (winners', losers') errors. accuracy is the share of
    pairs that the policy against the reference orders as people did, ties half. gap_w and gap_l may both rise: the
    winner then becomes less likely too, only less so than the loser.
    """
    margin, error = margin.detach(), [e.detach() for e in error]
    said = {
        "accuracy": (margin > 0).double() + 0.5 * (margin == 0).double(),
        "margin": margin,
        "err_w": error[0],
        "err_l": error[1],
        "gap_w": error[0] - reference[0],
        "gap_l": error[1] - reference[1],
    }
    if t.is_meta:  # a rehearsal: there are no numbers to sort
        return said
    bins = (t * NUM_BINS).long().clamp(max=NUM_BINS - 1)
    return said | {f"margin/t{i}": margin[bins == i] for i in range(NUM_BINS)}


class Alarm:
    """Ends a run whose winners' error stays above `limit` times the reference's; its checkpoints are kept."""

    def __init__(self, limit: float | None):
        self.limit = limit
        self.count = 0

    def watch(self, metrics: Mapping[str, float]) -> None:
        """`metrics`: an update's means over all processes; without err_w, of an update without winners, it waits."""
        if "err_w" not in metrics:
            return
        reference = metrics["err_w"] - metrics["gap_w"]
        self.count = self.count + 1 if self.limit is not None and metrics["err_w"] > self.limit * reference else 0
        if self.count == PATIENCE:
            raise UserError(
                f"objective: the winners' error has been above {self.limit:g} times the reference's for {PATIENCE} "
                f"updates (now {metrics['err_w']:.4g} against {reference:.4g}): the model forgets how to denoise, not "
                "what is preferred. Lower optim.lr, raise objective.beta, or set objective.guard; checkpoints are kept."
            )


class Alarmed:
    """Base: an objective whose `alarm` looks at each update, and is kept in checkpoints."""

    alarm: Alarm

    def watch(self, metrics: Mapping[str, float]) -> None:
        """Called after each update with its means over all processes; raises where the run has blown up."""
        self.alarm.watch(metrics)

    def state_dict(self) -> dict[str, Any]:
        return {"alarms": self.alarm.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.alarm.count = state["alarms"]
