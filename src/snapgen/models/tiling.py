"""Decodes and encodes large pictures in overlapping tiles, so that memory no longer grows with the picture."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import product

import torch
from torch import Tensor


def tile_starts(length: int, tile: int, step: int) -> list[int]:
    """Where tiles begin that cover `length`, at most `step` apart: the last one ends with the picture."""
    return [*range(0, length - tile, step), max(length - tile, 0)]


def in_tiles(function: Callable[[Tensor], Tensor], x: Tensor, tile: int, overlap: int, scale: Fraction) -> Tensor:
    """`function` of B C H W, computed tile by tile: B C' scale*H scale*W.

    tile: side of a tile of `x`; every tile has that side, or that of `x` if it is smaller.
    overlap: how much neighbours share at least; there one fades into the other.
    scale: height and width of what `function` returns, over those of what it is given.
    """
    size = [int(length * scale) for length in x.shape[-2:]]
    result, weights = torch.zeros((), device=x.device), torch.zeros(size, device=x.device)
    for top, left in product(*(tile_starts(length, tile, tile - overlap) for length in x.shape[-2:])):
        part = function(x[..., top : top + tile, left : left + tile])
        if not result.ndim:
            result = torch.zeros(*part.shape[:2], *size, device=x.device)
        fade = _fade(part, int(overlap * scale))
        y, x0 = int(top * scale), int(left * scale)
        place = (..., slice(y, y + part.shape[-2]), slice(x0, x0 + part.shape[-1]))
        result[place] += fade * part
        weights[place] += fade
    return (result / weights).to(x.dtype)


def _fade(part: Tensor, overlap: int) -> Tensor:
    """Weights H W of a tile: 1, and towards each side, over `overlap`, down to almost 0."""
    sides = []
    for length in part.shape[-2:]:
        distance = torch.arange(length, device=part.device) + 0.5
        distance = torch.minimum(distance, length - distance)
        sides.append((distance / max(overlap, 1)).clamp(max=1.0))
    return sides[0][:, None] * sides[1]
