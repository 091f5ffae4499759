"""The device that networks run on, and the versions of the libraries in use."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

# The libraries that pictures and scores depend on; torchmetrics may not be installed.
LIBRARIES = ("snapgen", "torch", "diffusers", "transformers", "safetensors", "numpy", "pillow", "torchmetrics")


def default_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return "cpu"


def library_versions() -> dict[str, str]:
    """The versions of Python and of those `LIBRARIES` that are installed."""
    versions = {"python": platform.python_version()}
    for package in LIBRARIES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
