"""The detector of scene pictures: which nouns, in which colours, where, in front of what.

1. The background is named and fitted (background.py); what differs from it is foreground.
2. Connected components of the foreground are candidates; so are unions of neighbours (a sprite that lost its thin
   parts falls into pieces) and halves of components that no template resembles (objects that touch).
3. Every candidate is compared with every noun in every look (templates.py): overlap of the silhouettes, correlation
   of the luminances, which says nothing of the tint, difference of the colours, and aspect ratio. The best noun and
   look are decided together.
4. What resembles nothing well enough is no object: a blob of the right colour is not recognised as anything.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from PIL import Image

from snapgen.evaluation.background import FittedBackground, fit_background
from snapgen.evaluation.components import Box, label
from snapgen.evaluation.templates import KINDS, VISIBLE, Patches, TemplateSheet, to_grid

SIDE = 128  # px at which every picture is looked at
SMALLEST = 16  # px of foreground that a component has at least
SMALLEST_OBJECT = 0.1  # of the side, the longer side of an object's box
NEIGHBOUR = 6  # px between components that may be pieces of one sprite
TEXTURE_SHARE = 0.5  # of the resemblance; the rest is shape
COLOR_SCALE = 150.0  # levels of colour difference that cost as much as no resemblance at all
ASPECT_SCALE = 0.8  # of the logarithm, likewise
MIN_RESEMBLANCE = 0.72  # below it a candidate is no object
GROW = (-1, 0, 1)  # px by which a candidate's box is tried larger: blur moves its edges


@dataclass(frozen=True)
class Detection:
    """One object. Box and centre are fractions of the picture's side, y grows downwards."""

    name: str  # a noun of the vocabulary
    color: str | None  # tint; None: its own colours
    box: tuple[float, float, float, float]  # left, top, right, bottom
    score: float  # resemblance to its template, at most 1

    @property
    def center(self) -> tuple[float, float]:
        """x, y."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True)
class Sighting:
    """All that the detector found in one picture."""

    objects: tuple[Detection, ...]  # best first
    background: str | None  # a name of the vocabulary; None: none of them


@dataclass(frozen=True)
class _Candidate:
    """A group of components (a set of labels) within a box, and the best that it could be."""

    labels: frozenset[int]
    box: Box
    area: int  # px of foreground
    kind: int = 0  # index into KINDS
    score: float = 0.0


class SceneDetector:
    """Finds the objects of scene pictures of any size."""

    def __init__(self, font: str | None = None) -> None:
        """`font`: path of the emoji font, None to look it up. Raises `FontMissingError`."""
        self._sheet = TemplateSheet(font)

    def __call__(self, picture: np.ndarray) -> Sighting:
        """`picture`: uint8 H W 3, sRGB, square."""
        if picture.shape[:2] != (SIDE, SIDE):
            picture = np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.LANCZOS))
        pixels = picture.astype(np.float32)
        background = fit_background(pixels)
        if background.name is None:
            return Sighting((), None)
        found = _Search(pixels, background, self._sheet).run()
        found.sort(key=lambda candidate: -candidate.score)
        return Sighting(tuple(_detection(candidate) for candidate in found), background.name)


def _detection(candidate: _Candidate) -> Detection:
    box = candidate.box
    name, color = KINDS[candidate.kind]
    fractions = (box.left / SIDE, box.top / SIDE, box.right / SIDE, box.bottom / SIDE)
    return Detection(name, color, fractions, round(candidate.score, 4))


class _Search:
    """The search for objects in one picture."""

    def __init__(self, pixels: np.ndarray, background: FittedBackground, sheet: TemplateSheet) -> None:
        self._pixels = pixels
        self._background = background
        self._sheet = sheet
        self._labels, self._boxes = label(background.distance > VISIBLE)
        self._areas = np.bincount(self._labels.ravel(), minlength=len(self._boxes) + 1)

    def run(self) -> list[_Candidate]:
        """The objects."""
        pieces = [
            _Candidate(frozenset({i + 1}), box, int(self._areas[i + 1]))
            for i, box in enumerate(self._boxes)
            if self._areas[i + 1] >= SMALLEST
        ]
        candidates = self._rated(pieces)
        candidates = self._merged(candidates)
        return [c for c in candidates if c.score >= MIN_RESEMBLANCE and _long_enough(c.box)]

    def _merged(self, candidates: list[_Candidate]) -> list[_Candidate]:
        """`candidates` with neighbours joined for as long as the whole resembles something better than its parts."""
        tried: dict[frozenset[int], _Candidate] = {}
        while True:
            pairs = [(a, b) for a, b in combinations(candidates, 2) if a.box.gap(b.box) <= NEIGHBOUR]
            new = [
                _Candidate(a.labels | b.labels, a.box.union(b.box), a.area + b.area)
                for a, b in pairs
                if a.labels | b.labels not in tried
            ]
            tried.update((candidate.labels, candidate) for candidate in self._rated(new))
            best, gain = None, 0.0
            for a, b in pairs:
                whole = tried[a.labels | b.labels]
                parts = (a.score * a.area + b.score * b.area) / whole.area
                if whole.score - parts > gain:
                    best, gain = (a, b, whole), whole.score - parts
            if best is None:
                return candidates
            candidates = [c for c in candidates if c not in best[:2]] + [best[2]]

    def _rated(self, candidates: list[_Candidate]) -> list[_Candidate]:
        """`candidates` with the kinds that they resemble most."""
        return [self._rate(candidate) for candidate in candidates]

    def _rate(self, candidate: _Candidate) -> _Candidate:
        box = candidate.box
        colors = self._background.colors[max(0, box.top) : box.bottom].mean(axis=0)
        templates = self._sheet.before(colors)
        result = templates.compare(self._patches(candidate))
        resemblance = (
            TEXTURE_SHARE * result.texture
            + (1 - TEXTURE_SHARE) * result.shape
            - (result.color / COLOR_SCALE) ** 2
            - (result.aspect / ASPECT_SCALE) ** 2
        )
        resemblance[:, ~templates.visible] = -1
        patch, kind = np.unravel_index(np.argmax(resemblance), resemblance.shape)
        return replace(candidate, kind=int(kind), score=float(resemblance[patch, kind]))

    def _patches(self, candidate: _Candidate) -> Patches:
        """The candidate cut out along slightly different boxes; what is not of it is background."""
        box = candidate.box
        around = Box(max(0, box.left - 2), max(0, box.top - 2), min(SIDE, box.right + 2), min(SIDE, box.bottom + 2))
        part = (slice(around.top, around.bottom), slice(around.left, around.right))
        labels = self._labels[part]
        own = np.isin(labels, list(candidate.labels))
        # Soft edges lie outside of the component: only what belongs to others is taken away.
        other = (labels > 0) & ~own
        pixels = np.where(other[..., None], self._background.colors[part[0], None], self._pixels[part])
        layers = np.concatenate([pixels, own[..., None].astype(np.float32)], axis=-1)
        grids, aspects = [], []
        for grow in GROW:
            edges = (
                max(0, box.left - around.left - grow),
                max(0, box.top - around.top - grow),
                min(around.width, box.right - around.left + grow),
                min(around.height, box.bottom - around.top + grow),
            )
            if edges[2] - edges[0] < 2 or edges[3] - edges[1] < 2:
                continue
            grids.append(to_grid(layers, edges))
            aspects.append(np.log((edges[2] - edges[0]) / (edges[3] - edges[1])))
        stacked = np.stack(grids)
        return Patches(stacked[..., :3], stacked[..., 3], np.array(aspects, dtype=np.float32))


def _long_enough(box: Box) -> bool:
    return max(box.width, box.height) >= SMALLEST_OBJECT * SIDE
