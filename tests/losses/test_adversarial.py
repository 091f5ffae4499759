"""The adversarial losses against formulas in float64, and what their gradients ask for."""

from __future__ import annotations

import math

import pytest
import torch

from snapgen.losses.adversarial import GAMES, hinge, hinge_generator, logistic, non_saturating, smoothness

REAL = torch.tensor([[2.0, 0.3], [-1.5, 0.0]])
FAKE = torch.tensor([[-3.0, 0.5], [1.0, -0.2]])


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_hinge_written_out() -> None:
    real = mean([max(0, 1 - logit) for logit in REAL.flatten().tolist()])
    fake = mean([max(0, 1 + logit) for logit in FAKE.flatten().tolist()])
    assert hinge(REAL, FAKE).item() == pytest.approx(real + fake)
    assert hinge_generator(FAKE).item() == pytest.approx(-mean(FAKE.flatten().tolist()))


def test_the_logarithms_of_equation_9() -> None:
    def log_probability(logit: float, of_data: bool) -> float:
        probability = 1 / (1 + math.exp(-logit))
        return math.log(probability if of_data else 1 - probability)

    real = mean([log_probability(logit, True) for logit in REAL.flatten().tolist()])
    fake = mean([log_probability(logit, False) for logit in FAKE.flatten().tolist()])
    assert logistic(REAL, FAKE).item() == pytest.approx(-(real + fake), rel=1e-5)
    expected = -mean([log_probability(logit, True) for logit in FAKE.flatten().tolist()])
    assert non_saturating(FAKE).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", sorted(GAMES))
def test_the_two_sides_pull_in_opposite_directions(name: str) -> None:
    discriminate, generate = GAMES[name]
    real, fake = torch.zeros(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    discriminate(real, fake).backward()
    assert (real.grad < 0).all() and (fake.grad > 0).all()  # a step lifts the logits of data, lowers the others
    fake.grad = None
    generate(fake).backward()
    assert (fake.grad < 0).all()


def test_a_generator_that_is_found_out_still_learns() -> None:
    for _, generate in GAMES.values():
        logits = torch.full((4,), -20.0, requires_grad=True)
        generate(logits).backward()
        assert logits.grad.abs().sum() == pytest.approx(1.0, abs=1e-3)


def test_smoothness_is_r1_for_small_noise() -> None:
    """For a linear D the expectation of (D(x) - D(x + s n))^2 is s^2 |grad D|^2."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, generator=generator, dtype=torch.float64)
    x = torch.randn(200_000, 8, generator=generator, dtype=torch.float64)
    noise = 0.05 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    found = smoothness(x @ weight, (x + noise) @ weight).item()
    assert found == pytest.approx(0.05**2 * weight.square().sum().item(), rel=0.02)
