"""Noise levels of training and sampling, against closed forms and diffusers' scheduler."""

import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from snapgen.flow.timesteps import TIMESTEP_SCALE, sample_sigmas, sampling_sigmas, shift_sigma


def test_the_shift_is_applied_once() -> None:
    torch.testing.assert_close(sampling_sigmas(4, shift=3.0), torch.tensor([1.0, 0.9, 0.75, 0.5, 0.0]))


@pytest.mark.parametrize("steps", [1, 4, 28, 1000])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_levels_are_those_of_diffusers(steps: int, shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    sigmas = sampling_sigmas(steps, shift)
    torch.testing.assert_close(sigmas, scheduler.sigmas, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(TIMESTEP_SCALE * sigmas[:-1], scheduler.timesteps, rtol=1e-6, atol=1e-4)
    assert (sigmas.diff() < 0).all()


def test_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="number of steps is 0, expected at least 1"):
        sampling_sigmas(0, 3.0)


def test_shift_keeps_the_ends_and_composes() -> None:
    sigma = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert shift_sigma(sigma, 3.0)[[0, -1]].tolist() == [0.0, 1.0]
    assert torch.equal(shift_sigma(sigma, 1.0), sigma)
    torch.testing.assert_close(shift_sigma(shift_sigma(sigma, 3.0), 3.0), shift_sigma(sigma, 9.0))


@pytest.mark.parametrize(("shift", "mean", "std"), [(1.0, 0.0, 1.0), (3.0, 0.0, 1.0), (3.0, -0.5, 0.7)])
def test_training_levels_are_logit_normal(shift: float, mean: float, std: float) -> None:
    """The logit of sigma' = s sigma / (1 + (s - 1) sigma) is the logit of sigma plus log s: normal again."""
    count = 200_000
    sigmas = sample_sigmas(count, torch.Generator().manual_seed(0), shift, mean, std)
    assert sigmas.shape == (count,) and sigmas.min() > 0 and sigmas.max() < 1
    logits = sigmas.double().logit()
    assert logits.mean().item() == pytest.approx(mean + math.log(shift), abs=4 * std / count**0.5)
    assert logits.std().item() == pytest.approx(std, abs=4 * std / (2 * count) ** 0.5)
    for point in (-1.0, 0.5, 1.5):  # the distribution function, not only two moments
        expected = 0.5 * (1 + math.erf((point - mean - math.log(shift)) / (std * math.sqrt(2))))
        assert (logits < point).double().mean().item() == pytest.approx(expected, abs=2 / count**0.5)


def test_training_levels_come_from_the_generator() -> None:
    one, same, other = (sample_sigmas(8, torch.Generator().manual_seed(seed), 3.0) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
