"""What exporting costs in scores: the scene benchmark's prompts by a model in torch and by ONNX bundles of it.

    python benchmarks/bundle_scores.py BUNDLE [BUNDLE ...] [--model mini] [--count 50] [--out benchmarks/results]

All make the same pictures: `--count` held-out prompts in each category, about the things that the model has learned if
it lists them, seed 0, the model's own steps and guidance. The detector judges them (`snapgen evaluate --suite scenes`
has the protocol); its accuracy is not checked again. Writes bundle_scores.json and .md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from shared import machine_facts, make_parser, page, write_results

from snapgen.messages import counted, markdown_table
from snapgen.pipeline.load import load_pipeline
from snapgen.pipeline.words import words_of_model
from snapgen.runtime.onnx import open_bundle
from snapgen.world.judge.canaries import score_of
from snapgen.world.judge.detector import SceneDetector
from snapgen.world.prompts import scene_prompts
from snapgen.world.scene import CATEGORIES
from snapgen.world.vocabulary import NOUN

SEED = 0
Generate = Callable[[str], np.ndarray]  # a prompt -> its picture, uint8 H W 3


def in_torch(model: str) -> Generate:
    """The model itself."""
    pipeline = load_pipeline(model)

    def generate(prompt: str) -> np.ndarray:
        generator = torch.Generator().manual_seed(SEED)
        return np.asarray(pipeline(prompt, generator=generator, return_dict=False)[0][0])

    return generate


def in_bundle(folder: Path) -> tuple[str, Generate]:
    """A bundle in ONNX Runtime, by its precision."""
    pipeline = open_bundle(folder)
    return f"onnx {pipeline.bundle.precision}", lambda prompt: np.asarray(pipeline(prompt, SEED))


def known_nouns(model: str) -> tuple[str, ...] | None:
    """The things that the model has learned; None: all."""
    words = words_of_model(model)
    return None if words is None else tuple(noun for noun in words["nouns"] if noun in NOUN)


def main() -> None:
    """Generate, judge and write the scores."""
    parser = make_parser(__doc__)
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument("--model", default="mini", help="what the bundles were made of")
    parser.add_argument("--count", type=int, default=50, help="prompts per category")
    options = parser.parse_args()
    nouns = known_nouns(options.model)
    prompts, detector = scene_prompts("heldout", options.count, nouns), SceneDetector(nouns=nouns)
    ways = {"torch": in_torch(options.model)} | dict(map(in_bundle, options.bundles))
    scores: dict[str, Any] = {}
    show = partial(print, file=sys.stderr)
    for name, generate in ways.items():
        sightings = [detector(generate(prompt.prompt)) for prompt in counted(prompts, show, name, len(prompts))]
        scores[name] = score_of(prompts, sightings)
    report = {"model": options.model, "prompts": len(prompts), "nouns": nouns, "scores": scores}
    report |= machine_facts("cpu", "onnxruntime")
    write_results(options.out / "bundle_scores", report, table(report))


def table(report: dict[str, Any]) -> str:
    """The results as Markdown."""
    scores = report["scores"]
    rows = [
        [name, f"{found['score']:.1%}", f"{100 * (found['score'] - scores['torch']['score']):+.1f} points"]
        + [f"{found['categories'][category]:.0%}" for category in CATEGORIES]
        for name, found in scores.items()
    ]
    head = f"{report['prompts']} prompts, one picture each, `{report['model']}`."
    lines = [head, "", *markdown_table(["", "score", "from torch", *CATEGORIES], rows)]
    return page(__file__, "# Scores of bundles", lines)


if __name__ == "__main__":
    main()
