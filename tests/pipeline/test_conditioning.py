"""What the UNet reads of the prompts: its shapes, what is trimmed, and that nothing is projected unasked."""

from typing import Any

import pytest
import torch

from snapgen.models.presets import UNETS, create_denoiser
from snapgen.pipeline.conditioning import Conditioning
from snapgen.text.encoder import TextStates

WIDTH = UNETS["debug"]["cross_attention_dim"]


def texts(lengths: list[int], seed: int) -> TextStates:
    """Random states B 16 D, of which the first `lengths` tokens may be attended to."""
    states = torch.randn(len(lengths), 16, WIDTH, generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(16) < torch.tensor(lengths)[:, None]
    return TextStates(states * mask[..., None], mask)


@pytest.fixture
def unet() -> Any:
    torch.manual_seed(0)
    return create_denoiser("debug").eval()


@torch.no_grad()
def test_shapes_at_the_boundary(unet: Any) -> None:
    conditioning = Conditioning(unet, texts([3, 5], seed=1), texts([1, 7], seed=2))
    for projected, batch, tokens in ((conditioning.positive, 2, 5), (conditioning.both, 4, 7)):
        key_values, mask = projected["encoder_hidden_states"], projected["encoder_attention_mask"]
        assert mask.shape == (batch, tokens)  # B N: as many tokens as the longest text has
        pairs = [pair for layer in key_values for pair in layer]
        assert pairs and all(part.shape[0] == batch and tokens in part.shape for pair in pairs for part in pair)
        velocity = unet(torch.randn(batch, 16, 4, 6), 500.0, key_values, mask).sample
        assert velocity.shape == (batch, 16, 4, 6)


@torch.no_grad()
def test_both_is_the_negative_and_then_the_text(unet: Any) -> None:
    text, negative = texts([3, 5], seed=1), texts([1, 7], seed=2)
    x = torch.randn(2, 16, 4, 4)
    both = unet(torch.cat([x, x]), 500.0, **Conditioning(unet, text, negative).both).sample
    alone = [unet(x, 500.0, part.states, part.mask).sample for part in (negative, text)]
    torch.testing.assert_close(both, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_only_what_is_asked_for_is_projected_and_once(unet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batches, project = [], unet.text_key_values
    monkeypatch.setattr(unet, "text_key_values", lambda states: batches.append(states.shape[0]) or project(states))
    conditioning = Conditioning(unet, texts([3], seed=1), texts([1], seed=2))
    assert batches == []
    assert conditioning.positive is conditioning.positive and batches == [1]
    assert conditioning.both is conditioning.both and batches == [1, 2]


def test_compiled_networks_and_teachers_read_padding_too(unet: Any) -> None:
    text, negative = texts([3], seed=1), texts([1], seed=2)
    unet.compile(backend="eager")
    assert Conditioning(unet, text, negative).both["encoder_attention_mask"].shape == (2, 16)
    given = Conditioning(create_denoiser("debug-teacher"), text, negative).positive
    assert torch.equal(given["encoder_hidden_states"], text.states)
    assert torch.equal(given["encoder_attention_mask"], text.mask)
