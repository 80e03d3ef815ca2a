"""What a run says of itself before it begins: where, what, how much, and into which folder."""

import os
from typing import Any

import torch

from align.registry import called
from rewards._numerals import counted

LARGE = 300e6
"""Parameters of a network whose training on a CPU is worth a word."""


def header(recipe: Any, model: Any, trained: Any, accelerator: Any) -> list[str]:
    """Lines for the terminal."""
    weights = list(model.network.parameters())
    total, own = sum(p.numel() for p in weights), sum(p.numel() for p in trained.parameters())
    frozen = total - sum(p.numel() for p in weights if p.requires_grad)
    device, train = accelerator.device, recipe.train
    each = train.micro_batch_size or -(-train.batch_size // accelerator.num_processes)
    dtype = next((p.dtype for p in weights if not p.requires_grad and p.is_floating_point()), torch.float32)
    lines = [
        f"{recipe.objective.name} on {called(recipe.model, model)}: trains {_millions(own)} parameters (rank "
        f"{recipe.adapter.rank}) beside {_millions(frozen)} in {str(dtype).removeprefix('torch.')}",
        f"{counted(train.num_updates, 'update')} of {counted(train.batch_size, 'row')}, {each} in a pass, on "
        f"{_device(device)}" + (f" and {accelerator.num_processes - 1} more" if accelerator.num_processes > 1 else ""),
        f"writes to {recipe.output}",
    ]
    if device.type == "cpu" and frozen > LARGE:
        lines.append(
            f"no GPU is used: {_millions(frozen)} parameters on a CPU take seconds to minutes a call. Ctrl-C ends it; "
            "align doctor says what this machine has, bash scripts/demo trains a small model."
        )
    return lines


def _millions(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.3g} M"


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        return f"{found.name} ({found.total_memory / 2**30:.0f} GiB)"
    return f"{device.type} ({torch.get_num_threads()} threads, {os.cpu_count()} cores)"
