"""A second opinion on pictures of scenes: a small network trained on spoilt renders (`recipes/mini/classifier.yaml`).

It shares nothing with the detector but the rules: no background is fitted, nothing is cut out, no template compared.
It looks at the whole picture and adds up what it believes to see (`snapgen.models.classifier`), so that a soft banana
is still one where the detector finds nothing, and one in doubt between two nouns is neither.

What it sees goes through the same rules as what the detector sees (verdicts.py), with three differences. Its things
have a place but no size, so that a relation asks for the direction of the centres alone. Things of one noun share one
place, their mean. And it says nothing of the background.
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
SIDE = 128  # px at which it, and the bundled autoencoder, were trained
BATCH = 32  # pictures read at once: bounds memory
MIN_ACCURACY = 0.90  # on renders, in every category; below it the report says so
LEAST = 0.5  # of an expected count: what is more likely not there is not seen


class SceneReader:
    """Reads pictures of any size with the classifier in a folder, on the CPU: verdicts are the same everywhere."""

    def __init__(self, folder: Path = FOLDER) -> None:
        """Raises ValueError if the weights are missing or damaged."""
        self._network = load_network(SceneClassifier, str(folder), dtype=torch.float32).eval()
        self.sha256 = network_hash({"classifier": self._network})

    def __call__(self, pictures: Sequence[np.ndarray]) -> list[Sighting]:
        """What is seen in `pictures`, each uint8 H W 3, square."""
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
    """The things in one picture: of each noun as many as its expected `counts` (N L) add up to, rounded.

    They take the looks in which most is left to see, one after the other. `centres`: N 2, fractions of the side.
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
    """The classifier's hash, and its last features averaged over a picture: uint8 H W 3 -> float64 128."""
    network = load_network(SceneClassifier, str(FOLDER), dtype=torch.float32).to(device).eval()

    @torch.no_grad()
    def extract(picture: np.ndarray) -> np.ndarray:
        features = network.features(to_tensor([resize_square(picture, SIDE)]).to(device))
        return np.asarray(features.mean(dim=(2, 3))[0].double().cpu())

    return network_hash({"classifier": network}), extract
