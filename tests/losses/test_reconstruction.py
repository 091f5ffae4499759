"""Reconstruction losses against plain float64 formulas."""

import numpy as np
import pytest
import torch

from snapgen.losses.reconstruction import gradient_loss, kl_loss, psnr


@pytest.fixture
def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    one, other = 2 * torch.rand(2, 2, 3, 16, 24, generator=generator) - 1
    return one, other


def test_gradient_loss_is_the_mean_difference_of_differences(pictures: tuple[torch.Tensor, torch.Tensor]) -> None:
    error = (pictures[0] - pictures[1]).double().numpy()
    total = 0.0
    for _ in range(3):
        total += np.abs(error[..., 1:] - error[..., :-1]).mean() + np.abs(error[..., 1:, :] - error[..., :-1, :]).mean()
        error = (error[..., ::2, ::2] + error[..., 1::2, ::2] + error[..., ::2, 1::2] + error[..., 1::2, 1::2]) / 4
    assert gradient_loss(*pictures).item() == pytest.approx(total / 3, rel=1e-5)


def test_gradient_loss_sees_edges_and_not_levels(pictures: tuple[torch.Tensor, torch.Tensor]) -> None:
    picture = pictures[0]
    assert gradient_loss(picture, picture).item() == 0
    assert gradient_loss(picture + 0.3, picture).item() == pytest.approx(0, abs=1e-6)
    blurred = torch.nn.functional.avg_pool2d(picture, 3, stride=1, padding=1)
    assert gradient_loss(blurred, picture) > 0.1


def test_kl_loss_is_the_divergence_of_normals() -> None:
    torch.manual_seed(0)
    mean, log_variance = torch.randn(2, 4, 16, 3, 3, dtype=torch.float64)
    ours = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    standard = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    expected = torch.distributions.kl_divergence(ours, standard).mean()
    torch.testing.assert_close(kl_loss(mean, log_variance), expected)
    assert kl_loss(torch.zeros(3), torch.zeros(3)).item() == 0


def test_psnr_of_each_picture(pictures: tuple[torch.Tensor, torch.Tensor]) -> None:
    prediction, target = pictures
    expected = []
    for one, other in zip(prediction.double().numpy(), target.double().numpy(), strict=True):
        as_bytes = [127.5 * (picture + 1) for picture in (one, other)]  # as for pictures of 0 .. 255
        expected.append(10 * np.log10(255**2 / np.mean((as_bytes[0] - as_bytes[1]) ** 2)))
    assert psnr(prediction, target).tolist() == pytest.approx(expected, rel=1e-5)


def test_psnr_clamps_the_prediction() -> None:
    target = torch.ones(1, 3, 8, 8)
    assert psnr(5 * target, target).item() == float("inf")
    assert psnr(-5 * target, target).item() == pytest.approx(0, abs=1e-5)  # all wrong: error as large as the range
