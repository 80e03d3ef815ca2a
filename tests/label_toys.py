"""Labelled images for tests: on disk, prepared for the tiny Stable Diffusion, and as latents for the Gaussian toy."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from pair_toys import picture, workplace

from align.data.labels import Labels, LabelsConfig, Pictures
from align.data.preferences import Pairs
from align.models._base import Posterior
from samplers import FlowSchedule, GaussianDenoiser, Prediction, constant

SHAPE, STD = (2, 2, 2), 0.6


def write_labels(folder: Path, count: int = 6, **extra: Any) -> Path:
    """A folder with labels.jsonl, every other image good; `extra` goes into every record."""
    lines = []
    for i in range(count):
        picture(folder / f"images/{i}.png", i)
        record = {"image": f"images/{i}.png", "prompt": f"number {i}", "label": (i + 1) % 2}
        lines.append(json.dumps(record | extra))
    (folder / "labels.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def labelled(
    policy: Any, folder: Path, *, batch_size: int = 4, seed: int = 0, said: Any = None, **config: Any
) -> Labels:
    """A source of the labelled images in `folder`, ready for use."""
    source = Labels(LabelsConfig(labels=str(folder), **config), batch_size=batch_size, seed=seed)
    source.prepare(workplace(policy, seed=seed, said=said))
    return source


class Roles:
    """A policy on Gaussian data whose mean is shifted by theta, and the unshifted reference."""

    def __init__(self, theta: torch.Tensor):
        self.roles = {
            "train": GaussianDenoiser(FlowSchedule(), Prediction.FLOW, STD, theta),
            "reference": GaussianDenoiser(FlowSchedule(), Prediction.FLOW, STD),
        }

    def role(self, name: str) -> Any:
        return self.roles[name]


def _exactly(latents: torch.Tensor) -> Posterior:
    return Posterior(latents, torch.full_like(latents, -math.inf))


class LabelledLatents:
    """Labelled images given as latents, without noise of an autoencoder."""

    def __init__(self, latents: torch.Tensor, good: list[bool], step: int = 0):
        self.latents, self.good, self.step, self.indices = latents, good, step, range(len(latents))

    def __len__(self) -> int:
        return len(self.good)

    def load(self) -> Pictures:
        cond = constant(torch.zeros_like(self.latents))
        return Pictures(_exactly(self.latents), cond, constant(torch.ones_like(self.latents)), cond[:1], lambda c: c)


class PairedLatents:
    """Pairs given as latents."""

    def __init__(self, winner: torch.Tensor, loser: torch.Tensor, step: int = 0):
        self.winner, self.loser, self.step, self.indices = winner, loser, step, range(len(winner))

    def __len__(self) -> int:
        return len(self.winner)

    def load(self) -> Pairs:
        cond = constant(torch.zeros_like(self.winner))
        return Pairs(_exactly(self.winner), _exactly(self.loser), cond, cond[:1], lambda c: (c, c))
