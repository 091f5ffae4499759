"""The held-out split: compositions that training never sees, chosen by a stable hash of their words.

Held out are about 10 % of (object, colour), 20 % of unordered object pairs in all relations, 10 % of
(object, count), and some sentence templates (marked in captions.py).
"""

from __future__ import annotations

from functools import cache
from hashlib import blake2b
from typing import Literal

from snapgen.world.scene import Scene

Split = Literal["train", "heldout", "all"]

_SHARES = {"color": 0.10, "pair": 0.20, "count": 0.10}


@cache
def held_out(kind: str, *words: str) -> bool:
    """Whether the composition `words` of `kind` ("color", "pair", "count") is held out; words in sorted order."""
    digest = blake2b("|".join((kind, *words)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 < _SHARES[kind]


def held_out_compositions(scene: Scene) -> list[tuple[str, ...]]:
    """The held-out compositions in `scene`, each as its kind and its words; empty: training may see the scene."""
    names = sorted({placed.name for placed in scene.objects})
    found = {("color", placed.name, placed.color) for placed in scene.objects if placed.color}
    compositions: list[tuple[str, ...]] = sorted(found)
    if len(names) == 2:
        compositions.append(("pair", *names))
    if scene.category == "counting":
        compositions.append(("count", names[0], str(len(scene.objects))))
    return [composition for composition in compositions if held_out(*composition)]


def allowed(scene: Scene, split: Split) -> bool:
    """Whether `split` may contain `scene`. A lone object in its own colours is no composition: every split has it."""
    if split == "all" or scene.category == "single":
        return True
    return bool(held_out_compositions(scene)) == (split == "heldout")
