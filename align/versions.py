"""The versions and the machine that a run's numbers depend on."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from rewards._numerals import counted

PACKAGES = ("diffalign", "torch", "diffusers", "transformers", "peft", "accelerate", "safetensors")


def versions() -> dict[str, str]:
    """{package: version}, Python's included."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a checkout that runs without being installed
            found[package] = "not installed"
    return found


def hardware() -> str:
    """Processor, cores, torch's threads, GPU."""
    import torch

    parts = [f"{_processor()}, {counted(os.cpu_count() or 1, 'core')}, {counted(torch.get_num_threads(), 'thread')}"]
    if torch.cuda.is_available():
        parts.append(f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}")
    return "; ".join(parts)


def _processor() -> str:
    """The name that the system has for it; `platform` knows only the architecture on Linux."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
