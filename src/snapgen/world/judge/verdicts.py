"""GenEval's rules: decide whether a detector saw what a prompt asked for.

The rules are those of `evaluate_images.py` in djghosh13/geneval, with the scene detector in place of Mask2Former:

- single object, two objects: every requested object is there; extra objects do no harm;
- counting: exactly the requested number is there;
- colours, colour attribution: the best-detected objects of each noun, as many as requested, have its colour;
- position: both are there, and the centres of the best-detected of each satisfy the relation (`relations`).

Four things differ, all because the world is exact. There is only one confidence threshold, the detector's. Colour is
part of the detection. A noun whose own look resembles a tint (a heart is red) has that colour in both looks, see
`alike`. There is no limit of 16 boxes.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from snapgen.detection import Detection, Verdict, relations
from snapgen.world.judge.detector import Sighting
from snapgen.world.scene import Scene
from snapgen.world.sprites import SpriteSheet

ALIKE = 27.0  # levels of RMS difference below which two looks of a noun count as the same: 7 of 512 pairs


def judge(scene: Scene, sighting: Sighting, font: str | None = None) -> Verdict:
    """The verdict on a picture that should show `scene`, given what was seen in it."""
    wanted: dict[str, tuple[int, str | None]] = {}
    for placed in scene.objects:
        count = wanted[placed.name][0] if placed.name in wanted else 0
        wanted[placed.name] = count + 1, placed.color
    found = {name: [seen for seen in sighting.objects if seen.name == name] for name in wanted}
    for name, (count, _) in wanted.items():
        there = len(found[name])
        if there < count:
            rule = "count" if scene.category == "counting" else "missing"
            return Verdict(False, rule, f"expected {count} {name}, found {_listed(sighting, name, there)}")
        if scene.category == "counting" and there > count:
            return Verdict(False, "count", f"expected {count} {name}, found {there}")
    for name, (count, color) in wanted.items():
        for seen in found[name][:count]:
            if color is not None and not has_color(seen, color, font):
                look = seen.color or "its own colours"
                return Verdict(False, "color", f"expected {name} in {color}, found it in {look}")
    if scene.relation:
        first, second = (found[placed.name][0] for placed in scene.objects)
        if scene.relation not in (found_relations := relations(first, second)):
            there_is = " and ".join(sorted(found_relations)) or "no clear relation"
            reason = f"expected {first.name} {scene.relation} of {second.name}, found {there_is}"
            return Verdict(False, "position", reason)
    return Verdict(True)


def has_color(seen: Detection, color: str, font: str | None = None) -> bool:
    """Whether a detected object counts as `color`."""
    if seen.color == color:
        return True
    return seen.color is None and alike(seen.name, color, font)


@cache
def alike(name: str, color: str, font: str | None = None) -> bool:
    """Whether the noun `name` in its own colours looks as if tinted `color`, measured on its sprite."""
    sheet = _sheet(font)
    own, alpha = sheet.sprite(name, None, 64)
    tinted, _ = sheet.sprite(name, color, 64)
    difference = (own.astype(np.float64) - tinted) ** 2
    weights = alpha / alpha.sum()
    return bool(np.sqrt((difference * weights).sum() / 3) < ALIKE)


@cache
def _sheet(font: str | None) -> SpriteSheet:
    return SpriteSheet(font)


def _listed(sighting: Sighting, name: str, there: int) -> str:
    """What was found instead, for people."""
    if there:
        return str(there)
    others = ", ".join(f"{seen.color} {seen.name}" if seen.color else seen.name for seen in sighting.objects)
    return others or "nothing"
