"""The noise of a seed without torch: what `torch.randn` samples on a CPU, so that a seed means one picture everywhere.

torch samples 24-bit uniform numbers with the Mersenne Twister MT19937, and makes blocks of 16 of them normal by the
transform of Box and Muller, eight pairs at a time. Vector units round its logarithm and cosine in their own ways; here
they are computed in fp64 and rounded once. The results differ by at most 5e-7. The browser's `web/src/noise.ts`
computes the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

BLOCK = 16  # numbers that are transformed together, and the fewest that can be sampled


def seeded_noise(seed: int, shape: Sequence[int]) -> np.ndarray:
    """What `torch.randn(shape, generator=torch.Generator().manual_seed(seed))` samples, fp32, but for rounding.

    ValueError for fewer than 16 numbers, which torch samples in another way.
    """
    count = prod(shape)
    if count < BLOCK:
        raise ValueError(f"noise of shape {tuple(shape)} has {count} numbers, expected at least {BLOCK}")
    tail = BLOCK if count % BLOCK else 0  # the last block is then sampled anew, and overlaps the one before
    words = np.random.RandomState(seed % 2**32).randint(2**32, size=count + tail, dtype=np.uint32)
    uniform = (words % 2**24) / 2**24
    noise = np.empty(count, np.float32)
    whole = count - count % BLOCK
    noise[:whole] = _box_muller(uniform[:whole])
    if tail:
        noise[-BLOCK:] = _box_muller(uniform[count:])
    return noise.reshape(shape)


def _box_muller(uniform: np.ndarray) -> np.ndarray:
    """Normal numbers from as many uniform ones in [0, 1): the first eight of a block give radii, the others angles."""
    first, second = np.moveaxis(uniform.reshape(-1, 2, BLOCK // 2), 1, 0)
    radius = np.sqrt(-2 * np.log(1 - first))
    angle = (np.float32(2 * np.pi) * second.astype(np.float32)).astype(np.float64)  # rounded as in torch
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).ravel()
