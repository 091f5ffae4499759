"""Classifier-free guidance: one batch of two halves is two separate evaluations."""

from collections.abc import Callable

import pytest
import torch

from snapgen.flow.guidance import Velocity, conditional, guided
from snapgen.models.presets import UNETS, create_unet
from snapgen.text.encoder import TextStates

Network = Callable[..., torch.Tensor]
SIGMA = 0.6


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    unet = create_unet("debug").eval().double()

    def run(*inputs: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return unet(*inputs, return_dict=False)[0]

    return run


@pytest.fixture
def texts() -> tuple[TextStates, TextStates]:
    torch.manual_seed(1)
    width = UNETS["debug"]["cross_attention_dim"]
    states = torch.randn(2, 3, 5, width, dtype=torch.float64)
    masks = torch.arange(5) < torch.tensor([[[5], [2], [4]], [[1], [1], [1]]])
    return TextStates(states[0], masks[0]), TextStates(states[1], masks[1])


def velocities(network: Network, text: TextStates, negative: TextStates) -> tuple[Velocity, Velocity]:
    """Under the text, and under both in one batch."""
    both = TextStates.cat([negative, text])
    return conditional(network, text.states, text.mask), conditional(network, both.states, both.mask)


@pytest.mark.parametrize("scale", [0.0, 0.5, 4.0])
def test_guidance_leads_away_from_the_negative(network: Network, texts: tuple[TextStates, TextStates], scale: float):
    x = torch.randn(3, 16, 4, 4, dtype=torch.float64)
    text, negative = texts
    v_text, v_negative = (conditional(network, part.states, part.mask)(x, SIGMA) for part in texts)
    expected = v_negative + scale * (v_text - v_negative)
    torch.testing.assert_close(guided(*velocities(network, text, negative), scale)(x, SIGMA), expected)


def test_the_network_is_told_a_thousand_sigma_and_runs_once(texts: tuple[TextStates, TextStates]) -> None:
    calls: list[tuple[int, float]] = []

    def network(x: torch.Tensor, timestep: torch.Tensor, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        assert x.shape[0] == states.shape[0] == mask.shape[0]
        calls.append((x.shape[0], timestep.item()))
        return x

    text, negative = texts
    x = torch.zeros(3, 16, 2, 2)
    guided(*velocities(network, text, negative), 4.0)(x, 0.25)
    guided(*velocities(network, text, negative), 1.0)(x, 0.5)  # switched off: no second half
    velocity = guided(*velocities(network, text, negative), 4.0, interval=(0.2, 0.8))
    for sigma in (0.9, 0.8, 0.5, 0.2, 0.1):
        velocity(x, sigma)
    batches = [batch for batch, _ in calls]
    assert batches == [6, 3, 3, 6, 6, 6, 3]
    assert [timestep for _, timestep in calls] == pytest.approx([250, 500, 900, 800, 500, 200, 100])


def test_outside_the_interval_the_text_alone_counts(network: Network, texts: tuple[TextStates, TextStates]) -> None:
    x = torch.randn(3, 16, 4, 4, dtype=torch.float64)
    text, negative = texts
    velocity = guided(*velocities(network, text, negative), 4.0, interval=(0.7, 1.0))
    assert torch.equal(velocity(x, SIGMA), conditional(network, text.states, text.mask)(x, SIGMA))
