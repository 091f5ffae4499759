"""The noise levels of sampling, against diffusers' scheduler and the shift of training."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from snapgen.flow.schedule import TIMESTEP_SCALE, sampling_levels
from snapgen.flow.timesteps import shifted_schedule


def test_the_shift_is_applied_once() -> None:
    assert sampling_levels(4, shift=3.0) == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0], abs=1e-7)


@pytest.mark.parametrize("steps", [1, 4, 28, 1000])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_levels_are_those_of_diffusers(steps: int, shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    sigmas = torch.tensor(sampling_levels(steps, shift))
    torch.testing.assert_close(sigmas, scheduler.sigmas, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(TIMESTEP_SCALE * sigmas[:-1], scheduler.timesteps, rtol=1e-6, atol=1e-4)
    assert (sigmas.diff() < 0).all()


def test_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="number of steps is 0, expected at least 1"):
        sampling_levels(0, 3.0)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 6.0])
def test_levels_are_those_of_given_sigmas(shift: float) -> None:
    for steps in range(1, 101):
        even = torch.linspace(1, 1 / steps, steps, dtype=torch.float64)
        assert sampling_levels(steps, shift) == shifted_schedule(even, shift).tolist()
