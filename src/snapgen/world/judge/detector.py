"""The detector of scene pictures: finds which nouns are where, in which colours and in front of what.

1. The background is named and fitted (background.py); whatever differs from it is foreground.
2. Candidates are connected components of the foreground (components.py), halves of components that resemble nothing
   (objects that touch), and unions of neighbours (a sprite that lost its thin parts); see search.py.
3. Every candidate is compared with every noun in every look (templates.py) by the overlap of the silhouettes, the
   correlation of the luminances (independent of the tint), the difference of the colours, and the aspect ratio. Noun
   and colour are decided together.
4. A candidate that resembles nothing well enough is no object: a blob of the right colour is not recognised.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from snapgen.detection import Detection
from snapgen.pictures import resize_square
from snapgen.world.judge.background import fit_background
from snapgen.world.judge.search import SIDE, Candidate, Search
from snapgen.world.judge.templates import Kind, TemplateSheet
from snapgen.world.vocabulary import known_nouns


@dataclass(frozen=True)
class Sighting:
    """Everything that the detector found in one picture."""

    objects: tuple[Detection, ...]  # best first
    background: str | None  # its name in the vocabulary; None: unknown


class SceneDetector:
    """Finds the objects of scene pictures of any size."""

    def __init__(self, font: str | None = None, nouns: Iterable[str] | None = None) -> None:
        """`font`: path of the emoji font, None to look it up; `nouns`: of the scenes. Raises `FontMissingError`."""
        self._sheet = _template_sheet(font, known_nouns(nouns))

    def __call__(self, picture: np.ndarray) -> Sighting:
        """What `picture` (uint8 H W 3, sRGB, square) shows."""
        picture = resize_square(picture, SIDE)
        background = fit_background(picture.astype(np.float32))
        if background.name is None:
            return Sighting((), None)
        found = Search(picture, background.name, background, self._sheet).run()
        found.sort(key=lambda candidate: -candidate.score)
        return Sighting(tuple(_detection(candidate, self._sheet.kinds) for candidate in found), background.name)


@cache
def _template_sheet(font: str | None, nouns: tuple[str, ...]) -> TemplateSheet:
    return TemplateSheet(nouns, font)


def _detection(candidate: Candidate, kinds: Sequence[Kind]) -> Detection:
    box = candidate.box
    name, color = kinds[candidate.kind]
    fractions = (box.left / SIDE, box.top / SIDE, box.right / SIDE, box.bottom / SIDE)
    return Detection(name, color, fractions, round(candidate.score, 4))
