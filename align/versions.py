"""The versions that a run's numbers depend on."""

import platform
from importlib.metadata import PackageNotFoundError, version

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
