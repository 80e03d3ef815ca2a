"""`align doctor`: what this machine has, what is missing, and whether a training of two updates works on it."""

import contextlib
import importlib.util
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from align.shadow import shadowed
from align.versions import versions

EXTRAS = {
    "bitsandbytes": "optim.algorithm=adamw8bit, model.quantize=nf4 or int8",
    "torchao": "model.quantize=torchao-int8",
    "xformers": "attention on GPUs older than flash attention",
    "tensorboard": "a tracker",
    "wandb": "a tracker",
    "trackio": "a tracker",
}


def report(say: Callable[[str], None]) -> bool:
    """Says everything, a line each; whether the toolkit works here."""
    for name, version in versions().items():
        say(f"{name:<14}{version}")
    say("")
    for line in (*_devices(), *_attention(), *_extras()):
        say(line)
    for name, text in shadowed().items():
        say(f"PROBLEM  {name}: {text}")
    problems = [*_torchvision(), *_self_test(say)]
    for problem in problems:
        say(f"PROBLEM  {problem}")
    return not problems and not shadowed()


def _devices() -> Iterator[str]:
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        yield f"GPU {index}: {device.name}, {device.total_memory / 2**30:.0f} GiB, {bf16}"
    if not torch.cuda.is_available():
        mps = ", and an Apple GPU that is not used" if torch.backends.mps.is_available() else ""
        yield f"no CUDA device{mps}: training runs on {torch.get_num_threads()} of {os.cpu_count()} CPU threads"


def _attention() -> Iterator[str]:
    enabled = {
        "flash": torch.backends.cuda.flash_sdp_enabled(),
        "memory-efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
        "cuDNN": torch.backends.cuda.cudnn_sdp_enabled(),
        "math": torch.backends.cuda.math_sdp_enabled(),
    }
    where = "torch's attention on the GPU" if torch.cuda.is_available() else "torch's attention, were there a GPU"
    yield f"{where}: {', '.join(name for name, on in enabled.items() if on)}"


def _extras() -> Iterator[str]:
    for package, use in EXTRAS.items():
        there = "installed" if importlib.util.find_spec(package) else "not installed"
        yield f"optional {package}: {there} ({use})"


def _torchvision() -> Iterator[str]:
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:
        yield (
            f"torchvision does not work with this torch ({error}), so open_clip cannot be imported. Install both from "
            "one source: pip install --upgrade torch torchvision."
        )


def _self_test(say: Callable[[str], None]) -> Iterator[str]:
    """Two updates on the embedded model: the adapter must move and the report must be written."""
    from align.run import train

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it would name files that are gone when it is read
                run = train(_recipe(folder), resume="never")
            norms = [record["adapter_norm"] for record in run.metrics if "adapter_norm" in record]
        except Exception as error:  # whatever it is, this is the place that reports it
            yield f"a training of two updates fails: {type(error).__name__}: {error}"
            return
        if not norms or norms[-1] <= 0:
            yield "a training of two updates leaves the adapter where it was"
            return
    say(f"a training of two updates works ({time.perf_counter() - started:.1f} s)")


def _recipe(folder: str) -> dict[str, object]:
    return {
        "model": {"name": "sd", "checkpoint": "embedded:shapes-sd"},
        "objective": "draft",
        "data": {"name": "prompts", "prompts": ["a red circle", "two blue squares"]},
        "rewards": {"brightness": {}},
        "sampling": {"num_steps": 2},
        "train": {"num_updates": 2, "batch_size": 2},
        "hooks": {"progress": False},
        "output": str(Path(folder) / "run"),
    }
