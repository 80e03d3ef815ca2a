"""A bundle with a nonlinear one-layer decoder whose pixels are easy to judge, for tests of noise optimisation."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from align.objectives._base import Parts
from align.objectives.reno import Reno, RenoConfig
from align.policy.noise import Noise, Repeated
from align.policy.roles import Policy
from align.sampling import SamplingConfig
from align.training.optim import OptimConfig
from align.training.trainer import TrainConfig, Trainer
from rewards import Composite
from rewards.brightness import Brightness, BrightnessConfig
from samplers import FlowSchedule, GaussianDenoiser, Prediction, constant, grids, noise

SHAPE = (3, 4, 4)
MEANS = {"": 0.0, "a": 0.3, "b": -0.2, "c": 0.1}


class Words:
    def encode(self, prompts: Any, grad: bool = False) -> Any:
        return constant(torch.stack([torch.full(SHAPE, MEANS[p], dtype=torch.float64) for p in prompts]))


class Toy:
    """The exact Gaussian denoiser; pixels are a sigmoid of mixed latents."""

    schedule, kind, text = FlowSchedule(), Prediction.FLOW, Words()

    def __init__(self, dtype: torch.dtype = torch.float64):
        self.network = nn.Linear(1, 1).to(dtype)
        mixing = torch.randn(48, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(9)).to(dtype) / 7
        self.codec = SimpleNamespace(decode=lambda x0: (x0.flatten(1) @ mixing).sigmoid().view(-1, *SHAPE))
        self.denoiser = GaussianDenoiser(self.schedule, self.kind, 0.7)

    def predict(self, network: Any, x_t: Any, t: Any, cond: Any) -> Any:
        return self.denoiser(x_t, t, cond.to(x_t.dtype))

    def latent_shape(self, image_size: Any = None) -> Any:
        return SHAPE

    def grids(self, num_steps: int, latent_shape: Any, step_rule: str, spacing: Any = None) -> Any:
        return grids.flow(num_steps)


def optimise(
    output: Path,
    rows: list[int],
    prompts: list[str],
    *,
    dtype: torch.dtype = torch.float64,
    objective: dict[str, Any] | None = None,
    optim: dict[str, Any] | None = None,
    sampling: dict[str, Any] | None = None,
    hooks: Any = (),
    reward: Any = None,
    start: Any = None,
    **train: Any,
) -> Noise:
    """The rows with these global indices through the real trainer; -> their noise."""
    accelerator = Accelerator(cpu=True)
    model = Toy(dtype)
    block = SamplingConfig(**{"num_steps": 2, "guidance_scale": 1.0, **(sampling or {})})
    rewards = Composite(reward or {"brightness": Brightness(BrightnessConfig())})
    parts = Parts(model, block, rewards, 0)
    trained = Noise(noise(0, "x_T", rows, SHAPE).to(dtype) if start is None else start)
    trained.keep_frames()
    config = TrainConfig(**{"num_updates": 5, "batch_size": len(rows), "max_grad_norm": 0.1, **train})
    settings = OptimConfig(**{"algorithm": "sgd", "lr": 5.0, "weight_decay": 0.0, **(optim or {})})
    trainer = Trainer(config, settings, accelerator, output, recipe={}, say=print)
    objective_ = Reno(RenoConfig(**(objective or {})), parts)
    trainer.fit(objective_, Policy(model), trained, Repeated(trained, prompts, rows), hooks)
    trained.gather(accelerator)
    return trained
