"""Eq. 3: Euler steps against diffusers' scheduler, and against data whose velocity is known in closed form."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from snapgen.flow.sampling import euler_step
from snapgen.flow.schedule import sampling_levels

MEAN = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
ROTATION = torch.linalg.qr(torch.tensor([[1.0, 2, 0], [0, 1, -1], [3, 0, 1]], dtype=torch.float64))[0]
VARIANCES = torch.tensor([4.0, 1.0, 0.09], dtype=torch.float64)
COVARIANCE = ROTATION @ VARIANCES.diag() @ ROTATION.T


def gaussian_velocity(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """E[eps - x_0 | x_t = x] for x_0 ~ N(MEAN, COVARIANCE), eps ~ N(0, 1), by conditioning jointly normal vectors.

    x_t = (1 - sigma) x_0 + sigma eps is normal with mean (1 - sigma) MEAN and the covariance below.
    """
    covariance = (1 - sigma) ** 2 * COVARIANCE + sigma**2 * torch.eye(3, dtype=torch.float64)
    whitened = torch.linalg.solve(covariance, (x - (1 - sigma) * MEAN).T).T
    expected_noise = sigma * whitened
    expected_x0 = MEAN + (1 - sigma) * whitened @ COVARIANCE
    return expected_noise - expected_x0


def exact(noise: torch.Tensor) -> torch.Tensor:
    """Where the flow takes noise: along each principal axis the spread goes from 1 to the data's."""
    return MEAN + noise @ ROTATION @ VARIANCES.sqrt().diag() @ ROTATION.T


def follow(
    velocity: Callable[[torch.Tensor, float], torch.Tensor], x: torch.Tensor, sigmas: Sequence[float]
) -> torch.Tensor:
    """From the noise `x` along falling `sigmas` to the last of them."""
    for sigma, following in pairwise(sigmas):
        x = euler_step(x, velocity(x, sigma), sigma, following)
    return x


def sample(noise: torch.Tensor, steps: int, shift: float = 3.0) -> torch.Tensor:
    return follow(gaussian_velocity, noise, sampling_levels(steps, shift))


def test_gaussian_data_has_the_right_mean_and_covariance() -> None:
    noise = torch.randn(4_000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # The noise itself is freed of its sampling error, so that what is left is the sampler's.
    noise = noise - noise.mean(dim=0)
    noise = noise @ torch.linalg.inv(torch.linalg.cholesky(noise.T.cov())).T
    x = sample(noise, 200)
    torch.testing.assert_close(x.mean(dim=0), MEAN, rtol=0, atol=1e-9)  # exact for any number of steps
    torch.testing.assert_close(x.T.cov(), COVARIANCE, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_error_falls_with_the_step(shift: float) -> None:
    noise = torch.randn(500, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    errors = [(sample(noise, steps, shift) - exact(noise)).norm(dim=1).mean().item() for steps in (50, 100, 200)]
    assert errors[0] < 0.2
    for error, halved in pairwise(errors):
        assert error / halved == pytest.approx(2, rel=0.1)  # Euler's method is of first order


def test_a_point_is_reached_in_one_step() -> None:
    """With no spread at all the path is straight: x_0 from any noise, whatever the steps."""
    target = torch.tensor([0.3, -2.0])
    noise = torch.randn(5, 2)
    for steps in (1, 4):
        x = follow(lambda x, sigma: (x - target) / sigma, noise, sampling_levels(steps, 3.0))
        torch.testing.assert_close(x, target.expand(5, 2))


def test_steps_are_those_of_diffusers() -> None:
    steps = 7
    torch.manual_seed(0)
    noise, velocities = torch.randn(2, 16, 4, 4), torch.randn(steps, 2, 16, 4, 4)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    expected = noise
    for timestep, velocity in zip(scheduler.timesteps, velocities, strict=True):
        expected = scheduler.step(velocity, timestep, expected).prev_sample
    given = iter(velocities)
    x = follow(lambda x, sigma: next(given), noise, sampling_levels(steps, 3.0))
    torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-6)
