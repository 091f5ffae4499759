"""Which tensors may be written, in which files."""

import math
import os
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from support.processes import run_two

from snapgen.train.health import ailment, unhealthy


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30, -65_600.0])
def test_what_is_unhealthy(value: float) -> None:
    tensors = {"good": torch.ones(3), "bad": torch.tensor([1.0, value, -2.0])}
    assert unhealthy(tensors) == f"bad holds a value of {abs(value):.4g}"


def test_what_is_healthy() -> None:
    tensors = {"limit": torch.tensor([65_504.0, -65_504.0]), "empty": torch.empty(0), "count": torch.tensor(10**9)}
    tensors |= {"half": torch.tensor([-65_504.0]).half(), "bfloat": torch.ones(2, 2, 2, 2).bfloat16()}
    assert unhealthy(tensors) is None


def test_moments_may_be_larger_than_weights_but_not_infinite() -> None:
    accelerator = Accelerator(cpu=True)
    large = {"step": torch.tensor(1e6)}
    assert ailment(accelerator, {"model": {}, "ema": {}, "optimizer": large}) is None
    assert ailment(accelerator, {"model": {}, "ema": large, "optimizer": {}}) == "step holds a value of 1e+06"
    infinite = {"exp_avg_sq": torch.tensor(math.inf)}
    found = ailment(accelerator, {"model": {}, "ema": {}, "optimizer": infinite})
    assert found == "exp_avg_sq holds a value of inf"


@pytest.mark.parametrize(("value", "healthy"), [(1e6, True), (math.nan, False)])
def test_running_statistics_are_no_weights(value: float, healthy: bool) -> None:
    """A loss of features may be large, and a count of batches passes 65,504 in any long run."""
    model = {"unet.weight": torch.ones(2), "scaling.running.visits": torch.tensor([value])}
    files = {"model": model, "ema": {"unet.weight": torch.ones(2)}, "optimizer": {}}
    assert (ailment(Accelerator(cpu=True), files) is None) == healthy
    files["model"]["unet.weight"] = torch.full((2,), 1e6)
    assert ailment(Accelerator(cpu=True), files) == "unet.weight holds a value of 1e+06"


def look(folder: Path) -> None:
    """What each of two processes does; only the second has a tensor that is ruined."""
    rank = os.environ["RANK"]
    value = math.nan if rank == "1" else 1.0
    (folder / rank).write_text(
        f"{ailment(Accelerator(cpu=True), {'model': {'part': torch.tensor([value])}, 'ema': {}})}"
    )


@pytest.mark.slow
def test_all_processes_agree(tmp_path: Path) -> None:
    assert run_two(look, tmp_path) == [0, 0]
    found = [(tmp_path / rank).read_text() for rank in "01"]
    assert found == ["another process found a value that is not finite or too large", "part holds a value of nan"]
