"""How several rewards become one: put on one scale (value), and freed of conflict (gradient).

    value:     total = sum_i w_i (r_i - m_i)/s_i                 m_i, s_i: mean and standard deviation, or 0 and 1
    gradient:  g = sum_i c_i h_i,   h_i = d(w_i r_i/s_i)/d pixels of one image,   c_i from the Gram matrix <h_i, h_j>

`sum` has c_i = 1: the plain gradient of the total. `normalised`: c_i = p_i (sum_j |h_j|)/|h_i|, p_i = |w_i|/sum |w|, so
a reward's share of the gradient is its weight and not its scale. `pcgrad` (Yu et al. 2020, arXiv 2001.06782, alg. 1):
h_i loses its component along each h_j that it opposes, <h_i, h_j> < 0, and what is left is summed. For two rewards the
sum opposes neither. For three it may, so there it is projected onto {g : <g, h_i> >= 0 for all i} (the quadratic
programme of GEM, Lopez-Paz & Ranzato 2017, arXiv 1706.08840).
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from rewards._config import ComponentConfig

MOST = 8  # rewards that pcgrad takes: it tries 2^R sets
RIDGE = 1e-12  # equal gradients make a singular system
TINY = 1e-30  # a squared norm below which a gradient is none


class CombineConfig(ComponentConfig):
    """How the rewards are put together; a weight is each reward's own."""

    normalise: Literal["none", "fixed", "running"] = "none"
    """Score every reward as (r - mean)/std: `fixed` by `statistics` or, where they name none, by the scores of the
    first update's images before training; `running` by averages that follow the training images."""
    statistics: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """normalise=fixed: label -> (mean, std) of its scores."""
    decay: float = Field(default=0.99, gt=0, lt=1)
    """normalise=running: how much of the averages an update keeps."""
    gradients: Literal["sum", "normalised", "pcgrad"] = "sum"
    """How the rewards' gradients at the pixels are put together: as they are, each scaled to its weight's share, or
    without the parts in which one works against another (PCGrad)."""

    def unmeasured(self, labels: Iterable[str]) -> Iterator[tuple[str, str]]:
        """What is wrong with it where nothing measures the scales of these rewards on the way."""
        if self.normalise != "none" and not (self.normalise == "fixed" and self.statistics.keys() >= set(labels)):
            yield (
                "combine.normalise",
                f"is {self.normalise}, and nothing measures the rewards' scales here. Remove it, or set "
                "combine.normalise=fixed with the mean and standard deviation of each reward in combine.statistics.",
            )

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        asked = any(getattr(recipe.get(key), "needs_gradient", False) for key in ("objective", "data"))
        rewards = recipe.get("rewards") or {}
        if asked and rewards and not any(reward.weight for reward in rewards.values()):
            label = next(iter(rewards))
            yield (
                f"rewards.{label}.weight",
                "is 0, as every reward's, so that there is nothing to learn. Give one a weight that is not 0.",
            )
        if self.statistics and self.normalise != "fixed":
            yield (
                ".statistics",
                f"are used by normalise=fixed only, which is {self.normalise}. Set it or remove them.",
            )
        if self.gradients == "pcgrad" and len(recipe.get("rewards", {})) > MOST:
            yield ".gradients", f"is pcgrad, which takes at most {MOST} rewards. Train on fewer, or use normalised."
        for label, (_, std) in self.statistics.items():
            if label not in recipe.get("rewards", {}):
                yield f".statistics.{label}", f"is no reward here: {', '.join(recipe.get('rewards', {}))}. Remove it."
            if not std > 0:
                yield f".statistics.{label}", f"has the standard deviation {std}. Give one above 0."


class Normaliser:
    """Mean and standard deviation of each reward; updated once an update from the scores of all its images."""

    def __init__(self, config: CombineConfig, labels: Sequence[str]):
        self.config = config
        self.labels = list(labels)
        self.moments: dict[str, tuple[float, float]] = {}
        """label -> (E[r], E[r^2])."""
        if config.normalise == "fixed":
            self.moments = {label: (m, m * m + s * s) for label, (m, s) in config.statistics.items()}

    @property
    def ready(self) -> bool:
        """Whether scores can be normalised; if not, `observe` some first."""
        return self.config.normalise == "none" or self.moments.keys() >= set(self.labels)

    def scale(self, label: str) -> tuple[float, float]:
        """(mean, std); (0, 1) without normalisation, and std 1 where all scores are equal."""
        if self.config.normalise == "none":
            return 0.0, 1.0
        mean, square = self.moments[label]
        variance = square - mean * mean
        return mean, math.sqrt(variance) if variance > 1e-12 * square else 1.0

    def observe(self, scores: Tensor) -> None:
        """(n, number of rewards) raw scores of one update's images, columns as the labels."""
        for label, column in zip(self.labels, scores.double().unbind(1), strict=True):
            new = float(column.mean()), float(column.square().mean())
            old = self.moments.get(label)
            if old is None:
                self.moments[label] = new
            elif self.config.normalise == "running":
                d = self.config.decay
                self.moments[label] = d * old[0] + (1 - d) * new[0], d * old[1] + (1 - d) * new[1]

    def state_dict(self) -> dict[str, Any]:
        return {"moments": dict(self.moments)} if self.config.normalise != "none" else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.moments = {label: (mean, square) for label, (mean, square) in state["moments"].items()}


def gram(gradients: Tensor) -> Tensor:
    """(R, B, ...) -> <h_i, h_j> of each image: (B, R, R) float64."""
    flat = gradients.flatten(2).transpose(0, 1)
    return torch.stack([(flat * row[:, None]).sum(-1, dtype=torch.float64) for row in flat.unbind(1)], 1)


def coefficients(how: str, products: Tensor, weights: Sequence[float]) -> Tensor:
    """The c_i of each image, (B, R), for the Gram matrices (B, R, R) and the rewards' weights."""
    if how == "normalised":
        norms = products.diagonal(dim1=1, dim2=2).sqrt()
        share = torch.tensor(weights, dtype=products.dtype, device=products.device).abs()
        return share / share.sum() * norms.sum(1, keepdim=True) / norms.clamp(min=TINY**0.5)
    if how == "pcgrad":
        return _pcgrad(products)
    return torch.ones(products.shape[:2], dtype=products.dtype, device=products.device)


def _pcgrad(products: Tensor) -> Tensor:
    number = products.shape[1]
    squares = products.diagonal(dim1=1, dim2=2).clamp(min=TINY)
    rows = torch.eye(number, dtype=products.dtype, device=products.device).repeat(len(products), 1, 1)
    for i in range(number):
        for j in (j for j in range(number) if j != i):
            along = (rows[:, i] * products[:, j]).sum(1)
            rows[:, i, j] -= along.clamp(max=0) / squares[:, j]
    found = rows.sum(1)
    return found if number < 3 else _project(found, products)


def _project(start: Tensor, products: Tensor) -> Tensor:
    """start + v, v >= 0: the nearest g to sum_i start_i h_i that opposes no h_i, (B, R).

    The conditions of optimality are v >= 0, <g, h_i> >= 0 and v_i <g, h_i> = 0. So for the right set of indices g is
    orthogonal to its h_i and v vanishes outside; R is small, so every set is tried and the one that fits best is taken.
    """
    batch, number = start.shape
    size = products.diagonal(dim1=1, dim2=2).clamp(min=TINY).sqrt()
    unit = products / size[:, :, None] / size[:, None, :]  # of the h_i scaled to norm 1: conditioned as they are alone
    wanted = -(unit * (start * size)[:, None]).sum(-1)
    sets = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * number).to(unit)[:, None]  # (2^R, 1, R)
    kept = sets[..., None] * sets[..., None, :]
    eye = torch.eye(number).to(unit)
    added = torch.linalg.solve(kept * unit + (1 - sets[..., None] + RIDGE) * eye, sets * wanted)  # (2^R, B, R)
    along = (unit * added[:, :, None]).sum(-1) - wanted
    misfit = torch.maximum((-along).amax(-1), (-added).amax(-1)).clamp(min=0)
    chosen = added[misfit.argmin(0), torch.arange(batch, device=start.device)]
    return start + chosen.clamp(min=0) / size
