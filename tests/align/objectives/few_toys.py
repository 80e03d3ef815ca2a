"""Gaussian students, teachers and fakes: x0_hat = m + sd z, and exact denoisers of what each of them makes."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from align.objectives._base import Parts
from align.sampling import SamplingConfig
from samplers import FlowSchedule, GaussianDenoiser, Prediction, VPSchedule, broadcast, constant, grids, target

TABLE = VPSchedule.from_config({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})
SCHEDULES = {"vp": (TABLE, Prediction.EPSILON), "flow": (FlowSchedule(), Prediction.FLOW)}
SHAPE = (2, 4, 4)


class Gaussian:
    """A role: data of mean and std of its own, exact; an unconditional prompt's mean is `shift` lower."""

    def __init__(self, schedule: Any, kind: Prediction, mean: Tensor, std: Tensor):
        self.schedule, self.kind, self.mean, self.std = schedule, kind, mean, std
        self.inputs: list[Tensor] = []

    def __call__(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        self.inputs.append(x_t)
        means = constant(self.mean + cond.tensors["mean"])
        return GaussianDenoiser(self.schedule, self.kind, self.std)(x_t, t, means)  # type: ignore[arg-type]


class Student(Gaussian):
    """Predicts m + sd z, z what the state has of noise, with a parameter of each for every step of the grid."""

    def __init__(self, schedule: Any, kind: Prediction, times: Tensor, mean: float, std: float):
        super().__init__(schedule, kind, torch.zeros(()), torch.ones(()))
        self.times, count = times[:-1], len(times) - 1
        self.m = torch.full((count,), mean, dtype=torch.float64, requires_grad=True)
        self.sd = torch.full((count,), std, dtype=torch.float64, requires_grad=True)

    def __call__(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        self.inputs.append(x_t)
        alpha, sigma = (broadcast(c, x_t) for c in self.schedule(t))
        step = (self.times - t.reshape(-1, 1)).abs().argmin(1)
        z = x_t / (alpha**2 + sigma**2).sqrt()
        m, sd = (p[step].reshape(-1, 1, 1, 1) for p in (self.m, self.sd))
        x0 = m + sd * z
        return target(x0, (x_t - alpha * x0) / sigma, alpha, sigma, self.kind)


class World:
    """A bundle and a policy in one: the roles train, reference and fake (and what else is given)."""

    def __init__(self, name: str, num_steps: int = 1, *, student: tuple[float, float] = (0.5, 0.8), **roles: Any):
        self.schedule, self.kind = SCHEDULES[name]
        self.network = nn.Linear(1, 1).double()
        self.num_steps = num_steps
        own = Student(self.schedule, self.kind, self._grid().times, *student)
        self.roles: dict[str, Any] = {"train": own}
        for role, (mean, std) in {"reference": (0.0, 1.0), "fake": student, **roles}.items():
            tensors = (torch.as_tensor(v, dtype=torch.float64) for v in (mean, std))
            self.roles[role] = Gaussian(self.schedule, self.kind, *tensors)
        self.text = SimpleNamespace(encode=self._encode)
        self.codec = SimpleNamespace(decode=lambda x0: x0)

    def _encode(self, prompts: Any, grad: bool = False) -> Any:
        """The empty prompt has a mean of 0, any other one of its length over 10."""
        means = [torch.full(SHAPE, len(p) / 10, dtype=torch.float64) for p in prompts]
        return constant(torch.stack(means))

    def _grid(self) -> Any:
        if self.kind is Prediction.FLOW:
            return grids.flow(self.num_steps)
        return grids.ddim(TABLE, self.num_steps, "trailing")

    def grids(self, *_: Any) -> Any:
        return self._grid()

    def latent_shape(self, image_size: Any = None) -> Any:
        return SHAPE

    def role(self, name: str) -> Any:
        return self.roles[name]

    def objective(self, kind: Any, rewards: Any = None, **config: Any) -> Any:
        block = SamplingConfig(num_steps=self.num_steps, guidance_scale=1.0, checkpoint_steps=False)
        return kind(kind.Config(**config), Parts(self, block, rewards, 0))
