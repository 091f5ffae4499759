"""Places the objects of a scene: inside the frame, apart from each other, in the relation asked for.

Every object gets a square as wide as its longer side, so layouts need no sprites.
"""

from __future__ import annotations

import numpy as np

from snapgen.detection import Relation
from snapgen.world.scene import Placed, SizeWord

MARGIN = 0.02  # of the side, kept free along the frame
GAP = 0.02  # of the side, between the squares of two objects

_SINGLE_SIZES: dict[SizeWord | None, tuple[float, float]] = {
    None: (0.45, 0.75),
    "small": (0.22, 0.36),
    "big": (0.80, 0.94),
}
_COUNTED_SIZES = {2: (0.32, 0.44), 3: (0.28, 0.39), 4: (0.26, 0.37), 5: (0.24, 0.32)}
_PAIR_SIZES = (0.30, 0.46)

Thing = tuple[str, str | None]  # name, colour


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A uniform random float in [low, high)."""
    return low + (high - low) * rng.random()


def _inside(rng: np.random.Generator, size: float) -> float:
    """A random centre coordinate that keeps a square of `size` inside the frame."""
    reach = MARGIN + size / 2
    return uniform(rng, reach, 1 - reach)


def place_one(rng: np.random.Generator, thing: Thing, size_word: SizeWord | None) -> tuple[Placed, ...]:
    """A lone object anywhere in the frame."""
    size = uniform(rng, *_SINGLE_SIZES[size_word])
    return (Placed(*thing, _inside(rng, size), _inside(rng, size), size),)


def place_many(rng: np.random.Generator, thing: Thing, count: int) -> tuple[Placed, ...]:
    """`count` objects of the same size (within 6 %), scattered without overlap."""
    base = uniform(rng, *_COUNTED_SIZES[count])
    while True:
        placed: list[Placed] = []
        for _ in range(24 * count):
            size = base * uniform(rng, 0.94, 1.0)
            new = Placed(*thing, _inside(rng, size), _inside(rng, size), size)
            if all(new.apart(old) >= GAP for old in placed):
                placed.append(new)
                if len(placed) == count:
                    return tuple(placed)
        base *= 0.97  # too crowded: start again, a little smaller


def place_pair(rng: np.random.Generator, first: Thing, second: Thing, relation: Relation) -> tuple[Placed, ...]:
    """Two objects, `first` clearly to the left of / to the right of / above / below `second`."""
    sizes = [uniform(rng, *_PAIR_SIZES) for _ in range(2)]
    room = 1 - 2 * MARGIN - GAP - sum(sizes)
    before, between, _ = np.diff(np.sort(rng.random(2)), prepend=0, append=1).tolist()
    near = MARGIN + before * room + sizes[0] / 2
    far = near + sum(sizes) / 2 + GAP + between * room
    # Across the axis both lie near one line, so that no other relation holds.
    line = uniform(rng, 0.32, 0.68)
    across = [float(np.clip(line + uniform(rng, -0.1, 0.1), MARGIN + s / 2, 1 - MARGIN - s / 2)) for s in sizes]
    along = [near, far]
    things = [first, second]
    if relation in ("right", "below"):
        things.reverse()
    vertical = relation in ("above", "below")
    placed = [
        Placed(*thing, across[i], along[i], sizes[i]) if vertical else Placed(*thing, along[i], across[i], sizes[i])
        for i, thing in enumerate(things)
    ]
    if relation in ("right", "below"):
        placed.reverse()
    return tuple(placed)
