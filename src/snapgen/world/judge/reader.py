"""A second opinion on scene pictures: a small network trained on spoilt renders (`recipes/mini/classifier.yaml`).

It shares only the rules with the detector: no background is fitted, nothing is cut out, no template is compared. It
looks at the whole picture and sums expected counts (`snapgen.models.classifier`). So a soft banana still counts where
the detector finds nothing, and a thing in doubt between two nouns counts as neither.

Its sightings are judged by the same rules as the detector's (verdicts.py), with three differences. Its things have a
place but no size, so a relation depends only on the direction between the centres. Things of one noun share one place,
their mean. And it does not read the background.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from snapgen.detection import Detection
from snapgen.messages import markdown_table
from snapgen.models.classifier import SceneClassifier
from snapgen.pictures import resize_square, to_tensor
from snapgen.weights import load_network, network_hash
from snapgen.world.judge.canaries import mean
from snapgen.world.judge.detector import Sighting

FOLDER = Path(__file__).parent / "classifier"
SIDE = 128  # px at which this classifier and the bundled autoencoder were trained
BATCH = 32  # pictures read at once: bounds memory
MIN_ACCURACY = 0.90  # on renders, in every category; below it the report says so
LEAST = 0.5  # smallest expected count that counts as seen


class SceneReader:
    """Reads pictures of any size with the classifier in a folder; on the CPU, so that verdicts are reproducible."""

    def __init__(self, folder: Path = FOLDER) -> None:
        """Raises ValueError if the weights are missing or damaged."""
        self._network = load_network(SceneClassifier, str(folder), dtype=torch.float32).eval()
        self.sha256 = network_hash({"classifier": self._network})

    def __call__(self, pictures: Sequence[np.ndarray]) -> list[Sighting]:
        """What is seen in each of `pictures` (uint8 H W 3, square)."""
        sightings: list[Sighting] = []
        for start in range(0, len(pictures), BATCH):
            part = [resize_square(picture, SIDE) for picture in pictures[start : start + BATCH]]
            reading = self._network.read(to_tensor(part))
            nouns, looks = self._network.config.nouns, self._network.config.looks
            for counts, centres in zip(reading.counts, reading.centres, strict=True):
                sightings.append(sighting_of(counts, centres, nouns, looks))
        return sightings


def sighting_of(
    counts: torch.Tensor, centres: torch.Tensor, nouns: Sequence[str], looks: Sequence[str | None]
) -> Sighting:
    """The things in one picture: each noun as often as its expected `counts` (N L) add up to, rounded.

    One after the other, they take the look with the largest remaining count. `centres`: N 2, fractions of the side.
    """
    objects: list[Detection] = []
    for index in torch.nonzero(counts.sum(dim=1) >= LEAST).flatten().tolist():
        left, (x, y) = counts[index].clone(), centres[index].tolist()
        expected = float(left.sum())
        number = int(expected + 1 - LEAST)
        for _ in range(number):
            look = int(left.argmax())
            left[look] -= 1
            objects.append(Detection(nouns[index], looks[look], (x, y, x, y), round(min(1.0, expected / number), 4)))
    return Sighting(tuple(sorted(objects, key=lambda seen: -seen.score)), None)


def opinion_summary(opinion: dict[str, Any]) -> list[str]:
    """The classifier's part of the report as lines of Markdown."""

    def row(name: str, part: str, score: float, ceiling: float, accuracy: float) -> tuple[str, ...]:
        equal, kappa = opinion["agreement"][part].values()
        shown = "" if kappa is None else f"{kappa:.2f}"
        return name, f"{score:.1%}", f"{equal:.1%}", shown, f"{ceiling:.1%}", f"{accuracy:.1%}"

    ceiling, accuracy, floor = opinion["ceiling"], opinion["accuracy"], opinion["floor"]
    rows = [
        row(category, category, score, ceiling["categories"][category], accuracy[category])
        for category, score in opinion["categories"].items()
    ]
    rows.append(row("mean", "all", opinion["score"], ceiling["score"], mean(accuracy)))
    worst = min(accuracy, key=lambda category: accuracy[category])
    doubt = (
        f" It reads only {accuracy[worst]:.1%} of renders right in {worst}: below {MIN_ACCURACY:.0%} do not rely on it."
    )
    return [
        "The classifier's opinion, which is no part of the score:",
        "",
        *markdown_table(("category", "score", "agrees with the detector", "kappa", "ceiling", "accuracy"), rows),
        "",
        f"Its floor: shuffled prompts {floor['shuffled']:.1%}, random pictures {floor['random']:.1%}."
        + (doubt if accuracy[worst] < MIN_ACCURACY else ""),
    ]


def picture_features(device: torch.device) -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
    """The classifier's hash, and a function from a picture (uint8 H W 3) to its mean last features (float64 128)."""
    network = load_network(SceneClassifier, str(FOLDER), dtype=torch.float32).to(device).eval()

    @torch.no_grad()
    def extract(picture: np.ndarray) -> np.ndarray:
        features = network.features(to_tensor([resize_square(picture, SIDE)]).to(device))
        return np.asarray(features.mean(dim=(2, 3))[0].double().cpu())

    return network_hash({"classifier": network}), extract
