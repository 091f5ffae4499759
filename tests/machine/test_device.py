"""What reports say of the machine."""

from __future__ import annotations

import io
import platform
from importlib.metadata import version

import pytest
import torch

from snapgen.machine import device
from snapgen.machine.device import default_device, device_name, library_versions


def test_the_gpu_is_the_default_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, kind in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert default_device() == torch.device(kind)


def test_a_cpu_has_the_name_that_the_system_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.open", lambda *_, **__: io.StringIO("flags: fpu\nmodel name\t: Some: CPU\n"))
    assert device_name(torch.device("cpu")) == "Some: CPU"
    monkeypatch.setattr("builtins.open", lambda *_, **__: io.StringIO("flags: fpu\n"))  # as on ARM
    assert device_name(torch.device("cpu")) == "cpu"


def test_versions_are_those_of_installed_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "LIBRARIES", ("torch", "not-installed-anywhere"))
    assert library_versions() == {"python": platform.python_version(), "torch": version("torch")}
