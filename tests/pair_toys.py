"""Preference pairs on disk and a prepared source of them, for tests: coloured squares and the tiny Stable Diffusion."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
from accelerate import Accelerator
from PIL import Image, ImageDraw

from align.data._workplace import Workplace
from align.data.preferences import Preferences, PreferencesConfig
from align.models.sd import SDConfig, StableDiffusion
from align.policy.lora import AdapterConfig
from align.policy.roles import Policy
from align.policy.trainable import Adapter

COLOURS = ["red", "green", "blue", "gold", "white", "black"]


def picture(path: Path, number: int, size: tuple[int, int] = (32, 32)) -> None:
    """A square on a plain ground, no two numbers alike; size is (height, width)."""
    image = Image.new("RGB", size[::-1], COLOURS[number % 6])
    left = 2 + number % 11
    ImageDraw.Draw(image).rectangle((left, 5, left + 9, 17), fill=COLOURS[(number + 1 + number // 6) % 6])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def pngs(folder: Path, count: int) -> list[bytes]:
    """`count` pictures as the bytes of their files."""
    for i in range(count):
        picture(folder / "made" / f"{i}.png", i)
    return [(folder / "made" / f"{i}.png").read_bytes() for i in range(count)]


def write_parquet(file: Path, images: list[bytes], labels: list[tuple[Any, Any]], **columns: Any) -> Path:
    """A table as Pick-a-Pic's; row i shows images i and i + 1."""
    file.parent.mkdir(parents=True, exist_ok=True)
    n = len(labels)
    table = {
        "caption": [f"prompt {i}" for i in range(n)],
        "jpg_0": images[:n],
        "jpg_1": images[1 : n + 1],
        "label_0": [a for a, _ in labels],
        "label_1": [b for _, b in labels],
        **columns,
    }
    pyarrow.parquet.write_table(pyarrow.table(table), file)
    return file


def write_pairs(folder: Path, count: int = 6, *, identical: bool = False, **extra: Any) -> Path:
    """A folder with pairs.jsonl; `extra` goes into every record."""
    lines = []
    for i in range(count):
        names = [f"images/{2 * i}.png", f"images/{2 * i if identical else 2 * i + 1}.png"]
        for name in names:
            picture(folder / name, int(Path(name).stem))
        lines.append(json.dumps({"prompt": f"number {i}", "winner": names[0], "loser": names[1], **extra}))
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def policy_on(pipeline: Any, *, b_scale: float = 0.2, rank: int = 2) -> Policy:
    """A policy on a pipeline; the adapter is the identity where b_scale is 0."""
    model = StableDiffusion(SDConfig(checkpoint="tiny"), pipeline=pipeline)
    adapter = Adapter(AdapterConfig(rank=rank), model.network, list(model.lora_targets), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapter.parameters() if b_scale else ():
            parameter += b_scale * torch.randn(parameter.shape, generator=generator)
    return Policy(model, adapter)


def workplace(
    policy: Policy, *, seed: int = 0, sampling: Any = None, rewards: Any = None, said: Any = None
) -> Workplace:
    """What a source is prepared with, on one process; lines that it says go into the list `said`."""
    lines = [] if said is None else said
    painter = SimpleNamespace(policy=policy, sampling=sampling, accelerator=Accelerator(cpu=True), seed=seed)
    return Workplace(painter, rewards, lambda configs: rewards, lines.append)


def prepared(policy: Policy, folder: Path, *, batch_size: int = 4, seed: int = 0, said: Any = None, **config: Any):
    """A source of the pairs in `folder`, ready for use."""
    source = Preferences(PreferencesConfig(pairs=str(folder), **config), batch_size=batch_size, seed=seed)
    source.prepare(workplace(policy, seed=seed, said=said))
    return source


def gradients(policy: Policy, loss: Any) -> torch.Tensor:
    """The gradient of a Loss's mean, all adapter parameters in one vector."""
    found = torch.autograd.grad(loss.per_sample.mean(), policy.adapter.parameters())
    return torch.cat([g.flatten() for g in found])
