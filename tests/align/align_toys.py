"""A toy bundle for tests of the training rooms: a small network with linear layers, and a regression objective."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from align.data.prompts import Prompts, PromptsConfig
from align.hooks._base import Hook, State
from align.objectives._base import Loss, Move
from align.policy.cast import Snapshot, Trained, gather
from align.policy.lora import AdapterConfig
from align.policy.roles import Policy
from align.policy.trainable import Adapter
from align.training.optim import OptimConfig
from align.training.trainer import TrainConfig, Trainer
from samplers.noise import noise
from samplers.prediction import Prediction
from samplers.schedule import FlowSchedule


class ToyNetwork(nn.Module):
    """(B, 4), t -> (B, 4): two linear layers, the first with the name that LoRA targets."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.to_q = nn.Linear(5, width)
        self.to_out = nn.Linear(width, 4)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        t = t.to(x).expand(len(x))[:, None]
        return self.to_out(torch.tanh(self.to_q(torch.cat([x, t], 1))))


@dataclass
class ToyModel:
    network: nn.Module
    schedule: Any = field(default_factory=FlowSchedule)
    kind: Prediction = Prediction.EPSILON
    lora_targets: tuple[str, ...] = ("to_q", "to_out")

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        return network(x_t, t)


def toy_policy(seed: int = 0, *, dtype: torch.dtype = torch.float32, **adapter: Any) -> Policy:
    """A policy on a ToyNetwork whose weights depend on `seed`; B is randomised, so that the adapter does something."""
    torch.manual_seed(seed)
    model = ToyModel(ToyNetwork().to(dtype))
    trainable = Adapter(AdapterConfig(**adapter), model.network, list(model.lora_targets), seed=seed)
    randomise(trainable, seed)
    return Policy(model, trainable)


def randomise(adapter: Adapter, seed: int = 0, scale: float = 0.2) -> None:
    """Moves an adapter away from the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator).to(parameter)


class Regression:
    """Pulls the network's output at a sample's own noise towards that noise; optionally drops rows, or returns nan."""

    def __init__(self, *, drop: int | None = None, nan_at: set[int] | None = None):
        self.drop = drop
        self.nan_at = nan_at or set()

    def __call__(self, policy: Policy, batch: Any, context: Any = None) -> Loss:
        x = noise(0, "x_T", batch.indices, (4,))
        x = x.to(next(policy.model.network.parameters()).dtype)
        out = policy.role("train")(x, torch.tensor(0.5), None)
        losses = (out - 2 * x.sin()).square().mean(1)
        if batch.step in self.nan_at:
            losses = losses * float("nan")
        weight = torch.tensor([float(self.drop is None or i % self.drop != 0) for i in batch.indices])
        return Loss(losses, weight, {"error": losses.detach(), "rows": torch.tensor(float(len(batch)))})


class Chase:
    """A round of three moves: `fake` twice towards what `train` says, then `train` away from `fake` and towards `old`,
    its own running average; all on one network."""

    def __init__(self) -> None:
        self.adapters = {"fake": Trained(optim={"lr": 3e-2}, max_grad_norm=None), "old": Snapshot(decay=0.5)}

    def moves(self, step: int) -> list[Move]:
        return [Move("fake", self.follow), Move("fake", self.follow), Move("default", self.flee)]

    def outputs(self, policy: Policy, batch: Any, *roles: str) -> list[Tensor]:
        x = noise(0, "x_T", batch.indices, (4,))
        return [policy.role(role)(x, torch.tensor(0.5), None) for role in roles]

    def follow(self, policy: Policy, batch: Any, context: Any = None) -> Loss:
        fake, train = self.outputs(policy, batch, "fake", "train")
        return self.loss((fake - train).square().mean(1))

    def flee(self, policy: Policy, batch: Any, context: Any = None) -> Loss:
        train, fake, old, reference = self.outputs(policy, batch, "train", "fake", "old", "reference")
        pulls = 0.1 * (train - old).square() + (train - reference).square() - 0.2 * (train - fake).square()
        return self.loss(pulls.mean(1))

    def loss(self, rows: Tensor) -> Loss:
        return Loss(rows, torch.ones_like(rows), {"error": rows.detach()})


def fit(
    output: Path,
    *,
    adapter: dict[str, Any] | None = None,
    optim: dict[str, Any] | None = None,
    objective: Any = None,
    hooks: Any = (),
    resume: Path | None = None,
    dtype: torch.dtype = torch.float32,
    say: Any = print,
    **train: Any,
) -> tuple[Policy, State, list[dict[str, Any]]]:
    """A short run of the real trainer on the toy; -> (policy, final state, the record of each update)."""
    config = TrainConfig(**{"num_updates": 6, "batch_size": 8, "checkpoint_every": 2, **train})
    accelerator = Accelerator(cpu=True)
    policy = toy_policy(0, dtype=dtype, **({"rank": 2} | (adapter or {})))
    optimisation = OptimConfig(**{"lr": 1e-2, "schedule": "cosine", **(optim or {})})
    trainer = Trainer(config, optimisation, accelerator, output, recipe={}, say=say)
    objective = objective or Regression()
    cast = gather(policy, objective)
    for number, (trainable, _) in enumerate(cast.trained.values(), 1):
        randomise(trainable, number)
    batches = Prompts(PromptsConfig(prompts=["a", "b", "c"]), batch_size=config.batch_size, seed=config.seed)
    keep = Keep()
    options = {"cast": cast, "resume": resume}
    state = trainer.fit(objective, policy, policy.adapter, batches, [keep, *hooks], **options)
    return policy, state, keep.records


class Keep(Hook):
    """Remembers every update's metrics, less the seconds."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def after_update(self, state: State) -> None:
        self.records.append({"step": state.step, **{k: v for k, v in state.metrics.items() if k != "seconds"}})


class StopAfter(Hook):
    """Ends a run after update number `step`."""

    def __init__(self, step: int):
        self.step = step

    def after_update(self, state: State) -> None:
        if state.step == self.step:
            state.stop = "enough"


def weights(policy: Policy) -> Tensor:
    """All adapters' parameters in one vector."""
    return torch.cat([p.detach().flatten() for a in policy.adapters.values() for p in a.parameters()])
