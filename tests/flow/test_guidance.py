"""Classifier-free guidance, and where it is on."""

import pytest
import torch

from snapgen.flow.guidance import guide, has_guidance, is_guided


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 4.0])
def test_guidance_leads_away_from_the_negative(scale: float) -> None:
    """Along the line through both velocities, in units of their distance: against a float64 reference."""
    v_text, v_negative = torch.randn(2, 3, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    found = guide(v_text, v_negative, scale)
    expected = scale * v_text.double() + (1 - scale) * v_negative.double()
    assert found.shape == (3, 16, 4, 4) and found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    if scale == 0:
        assert torch.equal(found, v_negative)


def test_guidance_is_on_inside_the_interval_with_both_ends() -> None:
    levels = (1.0, 0.9, 0.8, 0.5, 0.2, 0.1)
    assert [is_guided(sigma, 4.0, (0.2, 0.8)) for sigma in levels] == [False, False, True, True, True, False]
    assert all(is_guided(sigma, 4.0) for sigma in levels)


def test_up_to_scale_1_there_is_no_guidance() -> None:
    assert not is_guided(0.5, 1.0) and not is_guided(0.5, 1, (0.2, 0.8))
    assert not any(has_guidance(scale) for scale in (0, 0.0, 0.5, 1, 1.0)) and has_guidance(1.001)
