"""Sprites: every noun has its own glyph in the font; tints cover dark and light sprites alike."""

import numpy as np
import pytest

from snapgen.world.sprites import SpriteSheet, luminance, tint_ramp
from snapgen.world.vocabulary import COLORS, EVERYTHING, NOUNS


@pytest.fixture(scope="module")
def sheet() -> SpriteSheet:
    return SpriteSheet()


def test_every_noun_is_drawn_by_a_glyph_of_its_own(sheet: SpriteSheet) -> None:
    thumbnails = set()
    for noun in EVERYTHING:
        colors, alpha = sheet.sprite(noun.name, None, 32)
        assert max(alpha.shape[:2]) == 32
        assert min(alpha.shape[:2]) >= (16 if noun in NOUNS else 5)
        assert np.mean(alpha > 128) > (0.2 if noun in NOUNS else 0.1)
        # A missing glyph would be a plain gray box.
        assert np.ptp(colors[alpha[..., 0] > 128], axis=0).max() > (40 if noun in NOUNS else 10)
        thumbnails.add((colors * (alpha // 255)).tobytes())
    assert len(thumbnails) == 716


def test_sprites_keep_their_shape_at_every_size(sheet: SpriteSheet) -> None:
    for side in (24, 57, 109, 200):
        width, height = sheet.box("bus", side)
        assert max(width, height) == side
        colors, alpha = sheet.sprite("bus", None, side)
        assert colors.shape == (height, width, 3)
        assert alpha.shape == (height, width, 1)


def test_a_tint_ramp_rises_from_dark_through_the_colour_to_light() -> None:
    for color, rgb in COLORS.items():
        ramp = tint_ramp(color)
        assert ramp.shape == (256, 3)
        assert ramp.dtype == np.uint8
        assert np.abs(ramp[127].astype(int) - rgb).max() <= 2
        assert (np.diff(luminance(ramp)) >= -0.6).all()  # rounding


def test_tints_differ_on_every_sprite(sheet: SpriteSheet) -> None:
    for noun in NOUNS:
        means = []
        for color in COLORS:
            colors, alpha = sheet.sprite(noun.name, color, 40)
            means.append(colors[alpha[..., 0] > 200].mean(axis=0))
        gaps = [np.abs(a - b).max() for i, a in enumerate(means) for b in means[:i]]
        assert min(gaps) > 25, noun.name


def test_no_dark_fringe_where_a_sprite_ends(sheet: SpriteSheet) -> None:
    """Half-covered pixels of the yellow star are as light as the star, not mixed with black."""
    colors, alpha = sheet.sprite("star", None, 48)
    edge = (alpha[..., 0] > 60) & (alpha[..., 0] < 200)
    assert luminance(colors[edge]).mean() > 0.8 * luminance(colors[alpha[..., 0] == 255]).mean()
