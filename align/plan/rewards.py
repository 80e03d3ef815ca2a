"""What a reward needs: its weights, and what one batch of images takes forwards and backwards, on the meta device."""

import functools
import json
import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from align.plan.meter import Peak, fused_attention
from align.registry import EMBEDDED, REWARDS, RewardConfig, build
from rewards._card import UNKNOWN
from rewards._errors import RewardError
from rewards._unloaded import real, without_checkpoints


@dataclass(frozen=True)
class Need:
    """Of one reward."""

    weights: int
    """Bytes."""
    kept: int = 0
    """Bytes that the graph of a batch keeps until the reward's gradient is taken."""
    peak: int = 0
    """Bytes of forward and backward, at most, beside the weights."""
    flops: float = 0.0
    offload: bool = False
    known: bool = True
    """False: it could not be built, and its card's size is all that counts."""


def needs(rewards: Mapping[str, RewardConfig], size: tuple[int, int], rows: int) -> dict[str, Need]:
    """label -> what that reward needs for `rows` images of `size` (height, width) with gradient."""
    return {label: need(config, size, rows) for label, config in rewards.items()}


def need(config: RewardConfig, size: tuple[int, int], rows: int) -> Need:
    """What one reward needs; where it has a budget or is off-loaded, its images go through by themselves."""
    if not config.card.size[:1].isdigit():  # no network, or a small embedded one
        return Need(0, known=config.card is not UNKNOWN)
    plain = config.model_copy(update={"weight": 1.0, "memory_gib": None, "offload": False})
    found = _measured(json.dumps(plain.model_dump(mode="json"), sort_keys=True), config.card.size, size, rows)
    if config.memory_gib is None and not config.offload:
        return found
    peak = min(found.peak, int(config.memory_gib * 2**30)) if config.memory_gib else found.peak
    pixels = 4 * rows * 3 * size[0] * size[1]
    return Need(found.weights, min(found.kept, pixels), peak, found.flops, config.offload, found.known)


@functools.lru_cache(maxsize=256)
def _measured(said: str, stated: str, size: tuple[int, int], rows: int) -> Need:
    settings = json.loads(said)
    known, model = real(settings["name"], settings.get("model")), str(settings.get("model"))
    if known is None and not (model.startswith(EMBEDDED) or Path(model).expanduser().exists()):
        return Need(_of_card(stated), known=False)  # to build it would be to download it
    try:
        config: Any = REWARDS.config_class(settings["name"]).model_validate(settings)
        with torch.device("meta") if known else nullcontext(), without_checkpoints(known) if known else nullcontext():
            reward: Any = build(REWARDS, config)
        reward.to("meta")
        return _one_batch(reward, size, rows)
    except (RewardError, RuntimeError, NotImplementedError, OSError):  # weights that are not here, or data it asks for
        return Need(0 if model.startswith(EMBEDDED) else _of_card(stated), known=False)


def _one_batch(reward: Any, size: tuple[int, int], rows: int) -> Need:
    tensors = [*reward.parameters(), *reward.buffers()]
    weights = sum({id(t): t.nbytes for t in tensors}.values())
    prompts = ["a prompt"] * rows
    with Peak(tensors) as warm, fused_attention(warm), torch.no_grad():
        reward(torch.empty(1, 3, *size, device="meta"), prompts[:1])  # its cache of prompts, and of resizes
    images = torch.empty(rows, 3, *size, device="meta", requires_grad=bool(reward.differentiable))
    with Peak([*tensors, images]) as meter, fused_attention(meter):
        scores = reward(images, prompts)
        kept = meter.current
        if scores.requires_grad:
            torch.autograd.grad(scores.sum(), images)
    return Need(weights, kept, meter.peak, meter.flops)


def _of_card(size: str) -> int:
    """Bytes of the weights by the size that a card says, in float32 unless it says so: "986 M (ViT-H/14)"."""
    found = re.match(r"([\d.]+) ([MB])( in bf16)?", size)
    return int((2 if found[3] else 4) * float(found[1]) * {"M": 1e6, "B": 1e9}[found[2]]) if found else 0
