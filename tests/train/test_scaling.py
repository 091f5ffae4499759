"""The readings of Eq. 7, at the noise levels of four steps with the shift of 3."""

import pytest
import torch

from snapgen.flow.schedule import sampling_levels
from snapgen.losses.distillation import task_share
from snapgen.train.scaling import ScalingSettings, TimestepScaling


@pytest.mark.parametrize(
    ("settings", "shares"),
    [(ScalingSettings(), [0, 0.729, 1, 0.729]), (ScalingSettings(share_at="sigma"), [0, 0.249, 0.729, 1])],
)
def test_the_share_of_the_task_in_four_steps(settings: ScalingSettings, shares: list[float]) -> None:
    """The figures of both readings: by sigma, the last step has no teacher at all."""
    scaling = TimestepScaling(settings, shift=3.0, distillations=("output",))
    found = task_share(scaling.timesteps(torch.tensor(sampling_levels(4, shift=3.0)[:-1])))
    assert found.tolist() == pytest.approx(shares, abs=5e-4)


def test_magnitudes_are_buffers_unless_each_sample_has_its_own() -> None:
    running = TimestepScaling(ScalingSettings(), 3.0, ("output", "features"))
    assert {name: tuple(buffer.shape) for name, buffer in running.named_buffers()} == {
        "running.means": (3, 16),
        "running.visits": (3, 16),
    }
    assert not list(TimestepScaling(ScalingSettings(magnitudes="sample"), 3.0, ("output",)).buffers())
