"""A toy bundle for the objectives that differentiate a reward: a parameter for every step, so that a gradient says
which steps it came through, and inputs that are nodes of their own: it says whether it passed through them."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from align.data.prompts import PromptBatch
from align.models._base import Posterior
from align.objectives._base import Parts
from align.sampling import SamplingConfig
from rewards import Composite
from rewards.brightness import Brightness, BrightnessConfig
from samplers import FlowSchedule, Prediction, TensorCond, constant, grids

N, SHAPE, SEED = 8, (3, 2, 2), 5
PROMPTS, INDICES = ("a", "b", "a"), (4, 5, 6)
BATCH = PromptBatch(PROMPTS, INDICES, 2)


def at(update: int) -> PromptBatch:
    """BATCH at another update."""
    return PromptBatch(PROMPTS, INDICES, update)


class Words:
    def encode(self, prompts, grad=False):
        means = {"": 0.0, "a": 0.1, "b": -0.05}
        return constant(torch.stack([torch.full(SHAPE, means[p], dtype=torch.float64) for p in prompts]))


class Bundle:
    """Its pixels are its latents."""

    schedule, kind, text = FlowSchedule(), Prediction.FLOW, Words()

    def __init__(self) -> None:
        self.network = nn.Linear(1, 1).double()
        self.seen: list[Tensor] = []
        self.codec = SimpleNamespace(decode=self._decode, encode=self._encode)

    def _decode(self, x0: Tensor) -> Tensor:
        self.seen.append(x0)
        return x0

    def _encode(self, pixels: Tensor) -> Posterior:
        return Posterior(pixels.double(), torch.full_like(pixels.double(), -3.0))

    def latent_shape(self, image_size: Any) -> tuple[int, int, int]:
        return SHAPE

    def grids(self, num_steps: int, latent_shape: Any, step_rule: str, spacing: Any) -> Any:
        return grids.flow(num_steps)


class Network:
    """out = theta_i x^2/4 + cond at the grid's step i (theta_0 at any other time)."""

    schedule, kind = FlowSchedule(), Prediction.FLOW

    def __init__(self, num_steps: int = N):
        self.times = grids.flow(num_steps).times
        self.theta = torch.full((num_steps,), 0.7, dtype=torch.float64, requires_grad=True)
        self.inputs: dict[int, Tensor] = {}

    def __call__(self, x_t: Tensor, t: Tensor, cond: TensorCond) -> Tensor:
        found = (self.times == t).nonzero() if t.ndim == 0 else torch.empty(0)
        i = int(found) if len(found) else 0
        x_in = x_t.view_as(x_t)
        self.inputs[i] = x_in
        return self.theta[i] * x_in.square() / 4 + cond.tensors["mean"]

    def role(self, name: str) -> "Network":
        return self


def build(kind: type, config: dict[str, Any] | None = None, **sampling: Any) -> Any:
    """The objective on a new bundle, rewarded for brightness."""
    block = SamplingConfig(**{"num_steps": N, "guidance_scale": 2.0, "checkpoint_steps": False, **sampling})
    rewards = Composite({"brightness": Brightness(BrightnessConfig())})
    return kind(kind.Config(**(config or {})), Parts(Bundle(), block, rewards, SEED))


def steps(network: Network, loss: Tensor) -> list[bool]:
    """The steps whose parameter the gradient reaches."""
    return (torch.autograd.grad(loss.sum(), network.theta, retain_graph=True)[0] != 0).tolist()


def through_input(network: Network, loss: Tensor) -> list[bool]:
    """The steps through whose network input the gradient passes."""

    def passes(tensor: Tensor) -> bool:
        if not tensor.requires_grad:
            return False
        return torch.autograd.grad(loss.sum(), tensor, allow_unused=True, retain_graph=True)[0] is not None

    return [i in network.inputs and passes(network.inputs[i]) for i in range(len(network.theta))]
