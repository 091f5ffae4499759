"""Sprites: glyphs of the Noto Color Emoji font, trimmed, scaled and tinted.

The font has a single bitmap strike of 109 px; the sprites are OFL-1.1 like the font.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from snapgen.world.font import FontMissingError, find_font
from snapgen.world.vocabulary import COLORS, NOUN

STRIKE = 109  # px, the font's only size

# Where a sprite's low, middle and high luminance fall on the tint ramp: dark and light sprites both show the tint,
# and even their dark parts differ from black.
TINT_LEVELS = (25, 127.5, 215)

_Master = tuple[Image.Image, tuple[float, float, float]]


def tint_ramp(color: str) -> np.ndarray:
    """The tint for each luminance, uint8 256 3: almost black at 0, `color` at 128, almost white at 255."""
    level = np.linspace(0, 1, 256)[:, None]
    middle = np.array(COLORS[color], dtype=np.float64)
    dark = middle * (0.15 + 0.85 * np.minimum(level * 2, 1))
    light = (255 - middle) * 0.65 * np.maximum(level * 2 - 1, 0)
    return np.asarray(np.rint(dark + light), dtype=np.uint8)


def luminance(rgb: np.ndarray) -> np.ndarray:
    """Rec. 601 luma (0..255) of sRGB values of shape ... 3."""
    return rgb @ np.array([0.299, 0.587, 0.114])


class SpriteSheet:
    """The sprites of one font, cached for every requested size."""

    def __init__(self, font: str | None = None) -> None:
        """`font`: a path, or None to look the font up. Raises `FontMissingError`."""
        path = find_font(font)
        try:
            # As bytes: given the path of a broken font, Pillow opens another font of that name.
            self._font = ImageFont.truetype(BytesIO(path.read_bytes()), STRIKE)
        except OSError:
            raise FontMissingError(
                f"{path} is not Noto Color Emoji with its {STRIKE}-px bitmaps; install it: "
                "apt-get install fonts-noto-color-emoji (or set data.font)"
            ) from None
        self._masters: dict[str, _Master] = {}
        self._ramps = {color: tint_ramp(color) for color in COLORS}
        self._scaled = lru_cache(maxsize=4096)(self._scale)

    def _master(self, name: str) -> _Master:
        """The trimmed RGBA glyph, and its low, middle and high luminance (0..255)."""
        if name not in self._masters:
            canvas = Image.new("RGBA", (2 * STRIKE, 2 * STRIKE))
            ImageDraw.Draw(canvas).text(
                (STRIKE // 4, STRIKE // 4), NOUN[name].glyph, font=self._font, embedded_color=True
            )
            box = canvas.getchannel("A").getbbox()
            if box is None:
                raise FontMissingError(f"the font has no glyph for {name} ({unicodedata.name(NOUN[name].glyph[0])})")
            glyph = canvas.crop(box)
            pixels = np.asarray(glyph)
            solid = luminance(pixels[..., :3][pixels[..., 3] > 128])
            low, middle, high = np.percentile(solid, (2, 55, 98)).tolist()
            # A flat sprite (a heart) keeps its faint shading: its range is not stretched.
            self._masters[name] = glyph, (min(low, middle - 60), middle, max(high, middle + 60))
        return self._masters[name]

    def box(self, name: str, side: int) -> tuple[int, int]:
        """Width and height in px of the sprite whose longer side is `side` px."""
        glyph = self._master(name)[0]
        scale = side / max(glyph.size)
        return max(1, round(glyph.width * scale)), max(1, round(glyph.height * scale))

    def _scale(self, name: str, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Colours (uint16 H W 3), tint levels (uint8 H W) and alpha (uint16 H W 1) at `side` px."""
        glyph, luminances = self._master(name)
        # Pillow premultiplies RGBA before it resamples, so there are no dark fringes.
        pixels = np.asarray(glyph.resize(self.box(name, side), Image.Resampling.LANCZOS))
        colors, alpha = pixels[..., :3], pixels[..., 3:]
        levels = np.interp(luminance(colors), luminances, TINT_LEVELS)
        return colors.astype(np.uint16), levels.astype(np.uint8), alpha.astype(np.uint16)

    def sprite(self, name: str, color: str | None, side: int) -> tuple[np.ndarray, np.ndarray]:
        """Colours (uint16 H W 3, 0..255, not premultiplied) and alpha (uint16 H W 1, 0..255), both read-only.

        `side` is the longer side in px; with `color` None the sprite keeps its own colours.
        """
        colors, levels, alpha = self._scaled(name, side)
        return (colors if color is None else self._ramps[color][levels].astype(np.uint16)), alpha
