"""The throughput benchmark, run on its smallest case."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest
import torch

from snapgen.machine.counting import count
from snapgen.models.presets import create_unet


@pytest.fixture(scope="module")
def throughput(benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark("throughput")


def test_a_case_is_measured(throughput: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(throughput.MATRIX, "cpu", 64)
    arguments = ["--cases", "debug", "--steps", "1", "--batch", "2", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["throughput.py", *arguments])
    throughput.main()

    report = json.loads((tmp_path / "throughput_cpu.json").read_text())
    assert report["versions"]["torch"] == version("torch")
    (result,) = report["results"]
    with torch.device("meta"):
        unet = create_unet("debug")
        macs = count(unet, lambda: unet(torch.empty(1, 16, 4, 4), torch.empty(1), torch.empty(1, 16, 32))).macs
    assert result["macs_per_sample"] == macs
    assert result["samples_per_second"] == pytest.approx(2 / result["loop_s"])
    assert result["overhead"] == pytest.approx(result["loop_s"] / result["bare_s"] - 1)
    assert result["utilisation"] == pytest.approx(3 * 2 * macs * 2 / result["loop_s"] / result["matrix_flops"])
    assert "| debug | 32 | 2 | fp32 |" in (tmp_path / "throughput_cpu.md").read_text()


def test_actions_take_turns(throughput: ModuleType) -> None:
    taken: list[str] = []
    actions = {name: lambda name=name: taken.append(name) for name in "ab"}
    times = throughput.rotate(actions, 3, torch.device("cpu"))
    assert taken == list("ab") * (throughput.WARMUP + 3)
    assert all(0 < seconds < 1 for seconds in times.values())
