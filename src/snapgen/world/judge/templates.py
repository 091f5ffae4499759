"""The detector's templates: every noun in every look, as it appears in front of a given background.

All templates and all patches of a picture are cropped to their visible part and resampled to one small grid, so that
comparing every patch with every template takes a few matrix products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from snapgen.world.judge.components import label
from snapgen.world.source import background_picture
from snapgen.world.sprites import SpriteSheet, luminance
from snapgen.world.vocabulary import BACKGROUND, LOOKS

GRID = 24  # cells along each side
SPRITE_SIDE = 44  # px at which templates are rendered: the size of most objects in pictures of 128 px
VISIBLE = 36.0  # levels (Euclidean); pixels farther than this from the background are foreground
SPECK = 16  # px of foreground; smaller components are ignored
NOISE = 10.0  # levels; luminance differences of this size count as none


Kind = tuple[str, str | None]  # a noun and its tint; None: its own colours


@dataclass(frozen=True)
class Patches:
    """P pieces of a picture, each resampled to the grid."""

    colors: np.ndarray  # float32 P G*G 3, levels
    masks: np.ndarray  # float32 P G*G, 0..1: how much of a cell is foreground
    aspects: np.ndarray  # float32 P, log of width / height in the picture


@dataclass(frozen=True)
class Similarity:
    """The comparison of P patches with K kinds; all float32 P K."""

    shape: np.ndarray  # overlap of the silhouettes, 0..1
    texture: np.ndarray  # correlation of the luminances within the silhouette, -1..1
    color: np.ndarray  # RMS difference of the colours within the silhouette, levels
    aspect: np.ndarray  # difference of the logarithms of width / height


class Templates:
    """The templates of K kinds in front of one background colour."""

    def __init__(self, sheet: SpriteSheet, kinds: Sequence[Kind], background: np.ndarray) -> None:
        """`background`: its colour, 3 levels."""
        cells = GRID * GRID
        count = len(kinds)
        colors = np.empty((count, cells, 3), dtype=np.float32)
        alphas = np.empty((count, cells), dtype=np.float32)
        masks = np.empty((count, cells), dtype=np.float32)
        self.aspects = np.empty(count, dtype=np.float32)
        self.visible = np.ones(count, dtype=bool)
        for index, (name, look) in enumerate(kinds):
            sprite, alpha = sheet.sprite(name, look, SPRITE_SIDE)
            opacity = alpha.astype(np.float32) / 255
            seen = sprite * opacity + background * (1 - opacity)
            mask = ((seen - background) ** 2).sum(axis=-1) > VISIBLE**2
            labels, boxes = label(mask)
            if len(boxes) > 1:  # drop specks, as the search does
                mask = (np.bincount(labels.ravel()) >= SPECK)[labels] & mask
            if mask.mean() < 0.02:
                self.visible[index] = False
                mask[:] = True
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
            self.aspects[index] = np.log((right - left) / (bottom - top))
            box = (float(left), float(top), float(right), float(bottom))
            levels = seen.astype(np.uint8)
            grid = to_grid(levels, 255 * mask.astype(np.uint8), box)
            colors[index], masks[index] = grid[:, :3], grid[:, 3] / 255
            alphas[index] = to_grid(levels, alpha[..., 0], box)[:, 3]
        self._masks = masks
        self._mask_energy = (masks**2).sum(axis=1)
        # A cell's weight is how much of the sprite it contains.
        self._weights = alphas / alphas.sum(axis=1, keepdims=True)
        light = luminance(colors).astype(np.float32)
        light -= (light * self._weights).sum(axis=1, keepdims=True)
        self._weighted_light = light * self._weights
        self._light_energy = (light**2 * self._weights).sum(axis=1)
        self._weighted_colors = (colors * self._weights[..., None]).reshape(count, -1)
        self._color_energy = (colors**2 * self._weights[..., None]).sum(axis=(1, 2))

    def compare(self, patches: Patches) -> Similarity:
        """Compares every patch with every template."""
        common = patches.masks @ self._masks.T
        energy = (patches.masks**2).sum(axis=1)[:, None] + self._mask_energy
        shape = common / (energy - common)

        light = luminance(patches.colors).astype(np.float32)
        mean = light @ self._weights.T
        variance = np.maximum(light**2 @ self._weights.T - mean**2, 0)
        # Templates are centred, so the patch's own mean drops out.
        covariance = light @ self._weighted_light.T
        floor = NOISE**2
        texture = (covariance + floor) / np.sqrt((variance + floor) * (self._light_energy + floor))

        flat = patches.colors.reshape(len(patches.colors), -1)
        squares = (patches.colors**2).sum(axis=-1) @ self._weights.T
        cross = flat @ self._weighted_colors.T
        color = np.sqrt(np.maximum(squares - 2 * cross + self._color_energy, 0) / 3)
        return Similarity(shape, texture, color, patches.aspects[:, None] - self.aspects)


class TemplateSheet:
    """Templates of nouns in every look, in front of every background of the vocabulary.

    They are made when first needed: 12 kB and a millisecond per noun and look.
    """

    BANDS = 4  # parts of a gradient, from top to bottom, that have templates of their own

    def __init__(self, nouns: Sequence[str], font: str | None = None) -> None:
        """`font`: its path, or None to look it up. Raises `FontMissingError` if it is missing."""
        self.kinds: tuple[Kind, ...] = tuple((noun, look) for noun in nouns for look in LOOKS)
        self._sheet = SpriteSheet(font)
        self._made = cache(self._make)

    def _make(self, name: str, band: int) -> Templates:
        colors = background_picture(name, 2 * self.BANDS)[:, 0]
        return Templates(self._sheet, self.kinds, colors[2 * band : 2 * band + 2].mean(axis=0))

    def before(self, name: str, y: float) -> Templates:
        """The templates in front of the background `name` at the height `y`, 0 (top) to 1."""
        plain = len(BACKGROUND[name].stops) == 1
        return self._made(name, 0 if plain else min(int(y * self.BANDS), self.BANDS - 1))


def to_grid(colors: np.ndarray, layer: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    """The part `box` (left, top, right, bottom in px, inside the picture) resampled to the grid: float32 G*G 4.

    `colors`: uint8 H W 3; `layer`: uint8 H W, the fourth channel.
    """
    layers = np.concatenate([colors, layer[..., None]], axis=-1, dtype=np.uint8, casting="unsafe")
    # RGBX: Pillow resamples its four channels independently.
    image = Image.frombuffer("RGBX", (layers.shape[1], layers.shape[0]), layers.tobytes())
    resized = image.resize((GRID, GRID), Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized).reshape(-1, 4).astype(np.float32)
