"""The exact description of a scene: enough to render it, to caption it and to score a picture against it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from snapgen.detection import Relation

Category = Literal["single", "color", "counting", "two", "position", "attribution"]  # GenEval's six
SizeWord = Literal["small", "big"]

CATEGORIES: tuple[Category, ...] = get_args(Category)
RELATIONS: tuple[Relation, ...] = get_args(Relation)
OPPOSITE: dict[Relation, Relation] = {"left": "right", "right": "left", "above": "below", "below": "above"}


@dataclass(frozen=True)
class Placed:
    """One object in a scene. Lengths are fractions of the picture's side; y grows downwards."""

    name: str  # a noun of the vocabulary
    color: str | None  # tint; None: its own colours
    x: float  # centre
    y: float
    size: float  # longer side of its box

    def apart(self, other: Placed) -> float:
        """The gap between the squares around both objects, along the axis that separates them; negative: overlap."""
        reach = (self.size + other.size) / 2
        return max(abs(self.x - other.x), abs(self.y - other.y)) - reach


@dataclass(frozen=True)
class Scene:
    """The ground truth of a picture. Captions always state names, colours and counts; the rest only if marked here."""

    category: Category
    objects: tuple[Placed, ...]  # in the order of the caption; in "counting" all have one name and colour
    background: str  # a name of the vocabulary
    background_stated: bool  # whether captions name the background
    relation: Relation | None = None  # objects[0] is to the left of / ... objects[1]; stated if not None
    size_word: SizeWord | None = None  # of a lone object; stated if not None

    def to_json(self) -> dict[str, Any]:
        """The scene as plain values for `json.dumps`; `from_json` is the inverse."""
        return asdict(self) | {"objects": [asdict(placed) for placed in self.objects]}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Scene:
        """The scene that `to_json` wrote."""
        return cls(**values | {"objects": tuple(Placed(**placed) for placed in values["objects"])})
