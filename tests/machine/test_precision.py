"""Where half precision pays."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from snapgen.machine import precision
from snapgen.machine.precision import gains_by_bfloat16

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    gains_by_bfloat16.cache_clear()
    yield
    gains_by_bfloat16.cache_clear()


@pytest.mark.parametrize(("seconds", "expected"), [(0.5, True), (0.95, False), (1.8, False)])
def test_a_cpu_with_instructions_is_timed(monkeypatch: pytest.MonkeyPatch, seconds: float, expected: bool) -> None:
    monkeypatch.setattr(precision, "product_seconds", lambda dtype: seconds if dtype == torch.bfloat16 else 1.0)
    for name in ("avx512_bf16", "amx_bf16", "bf16"):
        gains_by_bfloat16.cache_clear()
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda name=name: {name: True})
        assert gains_by_bfloat16(CPU) == expected


def test_without_instructions_nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "product_seconds", lambda dtype: pytest.fail("emulation can take seconds"))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert not gains_by_bfloat16(CPU)
    assert not gains_by_bfloat16(torch.device("meta"))


def test_more_work_takes_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    large = precision.product_seconds(torch.float32)
    monkeypatch.setattr(precision, "SIDE", 32)
    assert 0 < precision.product_seconds(torch.float32) < large / 10  # of 4,096 times the work
