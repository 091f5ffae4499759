"""Recognises the background of a scene picture: its name in the vocabulary, and its exact colours.

The border of the picture, which objects leave free, decides the name. The colours are then fitted to the picture,
because a generated background is never exactly the one asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from snapgen.world.source import background_picture
from snapgen.world.vocabulary import BACKGROUNDS

FRAME = 3  # px at the border of the picture that are read as background
SATURATION = 90.0  # levels; larger distances from a background count as this
INLIER = 40.0  # levels; pixels closer than this to the background take part in the fit
ITERATIONS = 3
MAX_SHIFT = 45.0  # levels by which the fit may correct a channel of the known background
MIN_SHARE = 0.5  # share of the border that must be background


@dataclass(frozen=True)
class FittedBackground:
    """The background of one picture."""

    name: str | None  # its name in the vocabulary; None: it is none of those
    colors: np.ndarray  # float32 H 3, sRGB levels of each row
    distance: np.ndarray  # float32 H W, Euclidean levels from each pixel to the background


@cache
def known_colors(height: int) -> np.ndarray:
    """The vocabulary's backgrounds, float32 13 H 3, sRGB levels of each row; read-only."""
    return np.stack([background_picture(b.name, height)[:, 0] for b in BACKGROUNDS]).astype(np.float32)


def _length(difference: np.ndarray) -> np.ndarray:
    """Euclidean length along the last axis."""
    return np.asarray(np.sqrt(np.einsum("...c,...c->...", difference, difference)))


def fit_background(picture: np.ndarray) -> FittedBackground:
    """The background of `picture` (float32 H W 3, levels 0..255)."""
    height, width = picture.shape[:2]
    frame = np.zeros((height, width), dtype=bool)
    frame[:FRAME] = frame[-FRAME:] = frame[:, :FRAME] = frame[:, -FRAME:] = True
    rows = np.nonzero(frame)[0]
    distances = _length(picture[frame] - known_colors(height)[:, rows])
    costs = np.minimum(distances, SATURATION).mean(axis=1)
    best = int(np.argmin(costs))
    known = colors = known_colors(height)[best]
    heights = np.linspace(-1, 1, height, dtype=np.float32)
    basis = np.stack([np.ones_like(heights), heights], axis=1)  # a shift and a tilt of every channel
    limit = INLIER + float(costs[best])
    for _ in range(ITERATIONS):
        difference = picture - known[:, None]
        inside = _length(picture - colors[:, None]) < limit
        weights = inside.sum(axis=1).astype(np.float32)
        sums = np.where(inside[..., None], difference, 0).sum(axis=1)
        gram = (basis * weights[:, None]).T @ basis + np.eye(2, dtype=np.float32)
        shift = basis @ np.linalg.solve(gram, basis.T @ sums)
        colors = known + np.clip(shift, -MAX_SHIFT, MAX_SHIFT).astype(np.float32)
        limit = INLIER
    distance = _length(picture - colors[:, None])
    found = float((distance[frame] < INLIER).mean()) >= MIN_SHARE
    return FittedBackground(BACKGROUNDS[best].name if found else None, colors, distance)
