"""Eq. 1 and 2 of the paper."""

import torch

from snapgen.flow.path import interpolate, predict_x0, velocity_target


def test_the_path_goes_straight_from_data_to_noise() -> None:
    torch.manual_seed(0)
    x0, noise = torch.randn(2, 4, 16, 3, 3, dtype=torch.float64)
    sigma = torch.tensor([0.0, 0.25, 0.9, 1.0], dtype=torch.float64)
    x = interpolate(x0, noise, sigma)
    for index, level in enumerate(sigma.tolist()):
        torch.testing.assert_close(x[index], (1 - level) * x0[index] + level * noise[index])
    assert torch.equal(x[0], x0[0])
    assert torch.equal(x[3], noise[3])


def test_the_velocity_is_the_paths_derivative() -> None:
    torch.manual_seed(0)
    x0, noise = torch.randn(2, 2, 5, dtype=torch.float64)
    sigma, step = torch.full((2,), 0.4, dtype=torch.float64), 1e-6
    slope = (interpolate(x0, noise, sigma + step) - interpolate(x0, noise, sigma - step)) / (2 * step)
    torch.testing.assert_close(velocity_target(x0, noise), slope)
    torch.testing.assert_close(predict_x0(interpolate(x0, noise, sigma), velocity_target(x0, noise), sigma), x0)
