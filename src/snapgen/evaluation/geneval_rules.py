"""GenEval's rules: whether the objects that a detector found match the prompt.

They are those of `evaluate_images.py` of djghosh13/geneval. A prompt's metadata has `include` clauses, which must all
hold, and may have `exclude` clauses:

- an included class must appear at least `count` times; only its `count` most confident detections are checked further;
- with a `color`, `count` of them must have it;
- with a `position` (relation, number of an earlier clause), each must stand in that relation to each object of the
  earlier clause; if the earlier clause failed, so does this one;
- an excluded class must appear fewer than `count` times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from snapgen.detection import Detection, Verdict, relations

THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9  # scores that detections must exceed
MAX_OBJECTS = 16  # per class


@dataclass(frozen=True, eq=False)
class Found(Detection):
    """A detection with its box in px, and its mask (bool H W)."""

    mask: np.ndarray


def confident(found: Sequence[Found], tag: str) -> dict[str, list[Found]]:
    """The detections that count for the task `tag`, by class, most confident first."""
    threshold = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    kept: dict[str, list[Found]] = {}
    for one in sorted(found, key=lambda one: -one.score):
        if one.score > threshold and len(kept.setdefault(one.name, [])) < MAX_OBJECTS:
            kept[one.name].append(one)
    return kept


def judge(
    metadata: Mapping[str, Any], found: Mapping[str, Sequence[Found]], color_of: Callable[[Found], str]
) -> Verdict:
    """The verdict on a picture with the objects `found` (by class, best first), and a reason for each failed clause."""
    rule, reasons = "", []
    groups: list[Sequence[Found] | None] = []
    for clause in metadata["include"]:
        group: Sequence[Found] | None = found.get(clause["class"], [])[: clause["count"]]
        failed, reason = _include(clause, group or (), groups, color_of)
        if failed:
            rule, group = rule or failed, None
            reasons.append(reason)
        groups.append(group)
    for clause in metadata.get("exclude", ()):
        if (there := len(found.get(clause["class"], ()))) >= clause["count"]:
            rule = rule or "count"
            reasons.append(f"expected {clause['class']}<{clause['count']}, found {there}")
    return Verdict(not reasons, rule, "; ".join(reasons))


def _include(
    clause: Mapping[str, Any],
    found: Sequence[Found],
    groups: Sequence[Sequence[Found] | None],
    color_of: Callable[[Found], str],
) -> tuple[str, str]:
    """The rule that an `include` clause breaks and why; empty if it holds."""
    name, count = clause["class"], clause["count"]
    if len(found) < count:
        return "missing", f"expected {name}>={count}, found {len(found)}"
    if "color" in clause:
        colors = [color_of(one) for one in found]
        if colors.count(clause["color"]) < count:
            return "color", f"expected {clause['color']} {name}>={count}, found {', '.join(colors)}"
    if "position" in clause:
        relation, number = clause["position"]
        if (targets := groups[number]) is None:
            return "position", f"no target for {name} to be {relation}"
        for one in found:
            for target in targets:
                seen = relations(one, target)
                if relation.removesuffix(" of") not in seen:
                    there = " and ".join(sorted(seen)) or "no clear relation"
                    return "position", f"expected {name} {relation} target, found {there}"
    return "", ""
