"""What lies behind the objects of a scene picture: one of the vocabulary's backgrounds, and its exact colours.

The background is named from the frame of the picture, which objects leave free; its colours are then fitted to
the picture, because a generated background is never exactly the one that was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from snapgen.data.scenes import background_picture
from snapgen.data.vocabulary import BACKGROUNDS

FRAME = 3  # px at the border of the picture that are read as background
SATURATION = 90.0  # levels; a pixel farther than this from a background says no more against it
INLIER = 40.0  # levels; a pixel nearer than this to the background is fitted
ITERATIONS = 3
MAX_SHIFT = 45.0  # levels by which the fit may correct a channel of the known background
MIN_SHARE = 0.5  # of the frame that must be background


@dataclass(frozen=True)
class FittedBackground:
    """A background as it is in one picture."""

    name: str | None  # of the vocabulary; None: none of them is behind this picture
    colors: np.ndarray  # float32 H 3, sRGB levels of each row
    distance: np.ndarray  # float32 H W, Euclidean levels from each pixel to the background


def fit_background(picture: np.ndarray) -> FittedBackground:
    """The background behind `picture` (float32 H W 3, levels 0..255)."""
    height, width = picture.shape[:2]
    frame = np.zeros((height, width), dtype=bool)
    frame[:FRAME] = frame[-FRAME:] = frame[:, :FRAME] = frame[:, -FRAME:] = True
    best_cost, name, colors = np.inf, BACKGROUNDS[0].name, np.zeros((height, 3), dtype=np.float32)
    for background in BACKGROUNDS:
        known = background_picture(background.name, height)[:, 0].astype(np.float32)
        distance = np.linalg.norm(picture - known[:, None], axis=-1)[frame]
        cost = float(np.minimum(distance, SATURATION).mean())
        if cost < best_cost:
            best_cost, name, colors = cost, background.name, known
    known = colors
    heights = np.linspace(-1, 1, height, dtype=np.float32)
    basis = np.stack([np.ones_like(heights), heights], axis=1)  # a shift and a tilt of every channel
    limit = INLIER + best_cost
    for _ in range(ITERATIONS):
        difference = picture - known[:, None]
        inside = np.linalg.norm(picture - colors[:, None], axis=-1) < limit
        weights = inside.sum(axis=1).astype(np.float32)
        if weights.sum() < len(basis) * height:
            break
        sums = np.where(inside[..., None], difference, 0).sum(axis=1)
        gram = (basis * weights[:, None]).T @ basis + np.eye(2, dtype=np.float32)
        shift = basis @ np.linalg.solve(gram, basis.T @ sums)
        colors = known + np.clip(shift, -MAX_SHIFT, MAX_SHIFT)
        limit = INLIER
    distance = np.linalg.norm(picture - colors[:, None], axis=-1)
    found = float((distance[frame] < INLIER).mean()) >= MIN_SHARE
    return FittedBackground(name if found else None, colors, distance)
