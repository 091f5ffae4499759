"""Spoils renders (blur, warp, noise), so that a judge trained on them can also read softer, generated pictures.

Pure functions of one picture 3 H W in [-1, 1] and its random numbers.
"""

from __future__ import annotations

from math import log

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from snapgen.config import Settings

BEND_CELLS = 7  # cells along each side of the displacement field
BLOTCH_CELLS = 8  # cells along each side of the coarse noise


class Spoiling(Settings):
    """Shares of clean and shuffled pictures, and the maximum strength of each kind of spoiling."""

    clean: float = Field(default=0.2, ge=0, le=1)  # share of pictures left unchanged
    shuffled: float = Field(default=0.1, ge=0, le=1)  # share cut into tiles and shuffled, so that they show nothing
    bend: float = Field(default=0.04, ge=0)  # displacement, fraction of the side
    coarsest: float = Field(default=0.12, gt=0, le=1)  # lowest resolution, fraction of the full one
    blotch: float = Field(default=0.2, ge=0)  # amplitude of coarse noise; pictures span 2
    grain: float = Field(default=0.1, ge=0)  # amplitude of noise per pixel


def spoil(picture: Tensor, rng: np.random.Generator, settings: Spoiling) -> Tensor:
    """`picture` bent, coarsened, blotched and grained, each with a random strength from 0 to its maximum."""
    bending, coarseness, blotching, graining = rng.random(4)
    side = picture.shape[-1]
    picture = bend(picture, _normal(rng, 2, BEND_CELLS) * (settings.bend * bending))
    picture = coarsen(picture, float(np.exp(coarseness * log(settings.coarsest))))
    picture = picture + stretch(_normal(rng, 3, BLOTCH_CELLS) * (settings.blotch * blotching), side)
    return (picture + _normal(rng, 3, side) * (settings.grain * graining)).clamp(-1, 1)


def bend(picture: Tensor, displacement: Tensor) -> Tensor:
    """`picture` warped by a smooth field of `displacement` (2 c c: x and y, fractions of the side)."""
    identity = torch.eye(2, 3)[None]
    grid = F.affine_grid(identity, [1, *picture.shape], align_corners=False)  # spans 2
    field = 2 * stretch(displacement, picture.shape[-1]).permute(1, 2, 0)[None]
    return F.grid_sample(picture[None], grid + field, padding_mode="border", align_corners=False)[0]


def coarsen(picture: Tensor, factor: float) -> Tensor:
    """`picture` scaled down to `factor` (0 to 1) of its resolution and up again."""
    side = max(1, round(factor * picture.shape[-1]))
    return stretch(F.interpolate(picture[None], size=(side, side), mode="area")[0], picture.shape[-1])


def shuffle_tiles(picture: Tensor, tile: int, order: Tensor) -> Tensor:
    """`picture` cut into tiles of `tile` px and rearranged in `order` (indices, row by row)."""
    tiles = F.unfold(picture[None], tile, stride=tile)[0]
    return F.fold(tiles[:, order], picture.shape[-2:], tile, stride=tile)


def stretch(picture: Tensor, side: int) -> Tensor:
    """C h w -> C side side, bilinear."""
    return F.interpolate(picture[None], size=(side, side), mode="bilinear", align_corners=False)[0]


def _normal(rng: np.random.Generator, channels: int, side: int) -> Tensor:
    return torch.from_numpy(rng.standard_normal((channels, side, side), np.float32))
