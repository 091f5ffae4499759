"""The detector's search for objects in the foreground of a picture: components, their halves, unions of neighbours."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from snapgen.world.judge.background import FittedBackground
from snapgen.world.judge.components import Box, label
from snapgen.world.judge.templates import SPECK, VISIBLE, Patches, Similarity, TemplateSheet, to_grid

SIDE = 128  # px; every picture is resized to this first

# What counts as an object. Tuned on renders, blurred and noisy renders, and blobs, which must be rejected.
MIN_RESEMBLANCE = 0.75
MIN_TEXTURE = 0.6
MIN_LENGTH = 12  # px, the longer side of its box
MIN_AREA = 60  # px of foreground

# How resemblance is weighed.
TEXTURE_SHARE = 0.5  # weight of the texture; the rest is the shape's
COLOR_SCALE = 150.0  # levels of colour difference that cost a whole point of resemblance
ASPECT_SCALE = 0.8  # the same for the difference in log(width / height)

NEIGHBOUR = 6  # px; components at most this far apart may be pieces of one sprite
LINES = 3  # places along each axis where a component may be cut
CUT_GAIN = 0.1  # resemblance by which the halves must beat the whole
GROW = (-1, 0, 1)  # px by which a candidate's box is enlarged on trial: blur moves its edges


@dataclass(frozen=True, eq=False)
class Candidate:
    """A piece of the foreground that may be an object, and its best match."""

    mask: np.ndarray  # bool SIDE SIDE
    box: Box
    area: int  # px of the mask
    kind: int = 0  # index into the sheet's kinds
    score: float = 0.0  # resemblance, at most 1
    texture: float = 0.0  # the unweighted correlation of the luminances in it


def candidate_of(mask: np.ndarray) -> Candidate:
    """An unrated candidate that fills `mask` (not empty)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = Box(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return Candidate(mask, box, int(np.count_nonzero(mask)))


class Search:
    """The search for objects in one picture."""

    def __init__(self, picture: np.ndarray, name: str, background: FittedBackground, sheet: TemplateSheet) -> None:
        """`picture`: uint8 SIDE SIDE 3; `name`: that of its background."""
        self._picture = picture
        self._name = name
        self._background = background
        self._sheet = sheet
        self._foreground = background.distance > VISIBLE

    def run(self) -> list[Candidate]:
        """The objects found."""
        labels, boxes = label(self._foreground)
        areas = np.bincount(labels.ravel(), minlength=len(boxes) + 1)[1:].tolist()
        pieces = [Candidate(labels == i + 1, boxes[i], area) for i, area in enumerate(areas) if area >= SPECK]
        parts = [part for piece in pieces for part in self._cut(self._rate(piece))]
        return [candidate for candidate in self._merged(parts) if _is_object(candidate)]

    def _cut(self, candidate: Candidate) -> list[Candidate]:
        """Cuts a candidate that resembles nothing along the line with the best halves, and these likewise."""
        if candidate.score >= MIN_RESEMBLANCE or candidate.area < 2 * MIN_AREA:
            return [candidate]
        best: list[Candidate] = []
        most = candidate.score + CUT_GAIN
        for before in self._lines(candidate):
            halves = [candidate.mask & before, candidate.mask & ~before]
            if min(np.count_nonzero(half) for half in halves) >= MIN_AREA:
                rated = [self._rate(candidate_of(half)) for half in halves]
                score = sum(half.score * half.area for half in rated) / candidate.area
                if score > most:
                    best, most = rated, score
        return [part for half in best for part in self._cut(half)] or [candidate]

    def _lines(self, candidate: Candidate) -> list[np.ndarray]:
        """Where to cut: rows and columns with the least foreground, each as a bool mask of what comes before it."""
        box = candidate.box
        part = (slice(box.top, box.bottom), slice(box.left, box.right))
        amount = np.where(candidate.mask[part], self._background.distance[part], 0)
        places = np.arange(SIDE)
        lines = [places[None, :] < box.left + x for x in _valleys(amount.sum(axis=0))]
        return lines + [places[:, None] < box.top + y for y in _valleys(amount.sum(axis=1))]

    def _merged(self, candidates: list[Candidate]) -> list[Candidate]:
        """`candidates` with neighbours joined as long as a whole resembles something more than its parts do."""
        wholes: dict[tuple[Candidate, Candidate], Candidate] = {}
        while True:
            best, gain = None, 0.0
            for pair in combinations(candidates, 2):
                a, b = pair
                if a.box.gap(b.box) > NEIGHBOUR:
                    continue
                if pair not in wholes:
                    wholes[pair] = self._rate(candidate_of(a.mask | b.mask))
                whole = wholes[pair]
                parts = (a.score * a.area + b.score * b.area) / whole.area
                if whole.score - parts > gain:
                    best, gain = pair, whole.score - parts
            if best is None:
                return candidates
            candidates = [candidate for candidate in candidates if candidate not in best] + [wholes[best]]

    def _rate(self, candidate: Candidate) -> Candidate:
        """`candidate` with the kind it resembles most."""
        box = candidate.box
        templates = self._sheet.before(self._name, (box.top + box.bottom) / 2 / SIDE)
        similarity = templates.compare(self._patches(candidate))
        scores = np.where(templates.visible, resemblance(similarity), -1)
        patch, kind = np.unravel_index(np.argmax(scores), scores.shape)
        texture = float(similarity.texture[patch, kind])
        return replace(candidate, kind=int(kind), score=float(scores[patch, kind]), texture=texture)

    def _patches(self, candidate: Candidate) -> Patches:
        """The candidate cut out along slightly different boxes, with other pieces of foreground painted over."""
        box = candidate.box
        around = Box(max(0, box.left - 2), max(0, box.top - 2), min(SIDE, box.right + 2), min(SIDE, box.bottom + 2))
        part = (slice(around.top, around.bottom), slice(around.left, around.right))
        own = candidate.mask[part]
        # Soft edges lie outside the mask: only the other pieces' own pixels are removed.
        other = self._foreground[part] & ~own
        pixels = np.where(other[..., None], self._background.colors[part[0], None], self._picture[part])
        mask = 255 * own.astype(np.uint8)
        grids, aspects = [], []
        for grow in GROW:
            left, right = max(0, box.left - around.left - grow), min(around.width, box.right - around.left + grow)
            top, bottom = max(0, box.top - around.top - grow), min(around.height, box.bottom - around.top + grow)
            if grow == 0 or (right - left >= 2 and bottom - top >= 2):
                grids.append(to_grid(pixels.astype(np.uint8), mask, (left, top, right, bottom)))
                aspects.append(np.log((right - left) / (bottom - top)))
        stacked = np.stack(grids)
        return Patches(stacked[..., :3], stacked[..., 3] / 255, np.array(aspects, dtype=np.float32))


def resemblance(similarity: Similarity) -> np.ndarray:
    """How much each patch resembles each kind, P K, at most 1: the detector's criterion."""
    alike = TEXTURE_SHARE * similarity.texture + (1 - TEXTURE_SHARE) * similarity.shape
    return np.asarray(alike - (similarity.color / COLOR_SCALE) ** 2 - (similarity.aspect / ASPECT_SCALE) ** 2)


def _is_object(candidate: Candidate) -> bool:
    long_enough = max(candidate.box.width, candidate.box.height) >= MIN_LENGTH
    return long_enough and candidate.score >= MIN_RESEMBLANCE and candidate.texture >= MIN_TEXTURE


def _valleys(profile: np.ndarray) -> list[int]:
    """The LINES lowest local minima of `profile`, away from its ends, lowest first."""
    near = len(profile) // 6
    inner = range(max(1, near), len(profile) - max(1, near))
    minima = [i for i in inner if profile[i] <= profile[i - 1] and profile[i] < profile[i + 1]]
    return sorted(minima, key=lambda i: float(profile[i]))[:LINES]
