"""Noise levels of training, and the shift, against closed forms."""

import math

import pytest
import torch

from snapgen.flow.timesteps import sample_sigmas, shift_sigma


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
