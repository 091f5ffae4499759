"""Measuring models. A suite is one file here and one line in `SUITES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snapgen.pipeline import SnapGenPipeline

SUITES = {  # name on the command line -> module:function of the type `Suite`, imported when run
    "scenes": "snapgen.evaluation.scenes:evaluate_scenes",
}


@dataclass(frozen=True)
class EvaluationSettings:
    """What a run of a suite is asked for."""

    count: int = 50  # prompts a category
    seeds: tuple[int, ...] = (0,)  # a picture a prompt and seed
    steps: int | None = None  # the model's own if None
    guidance: float | None = None
    size: int | None = None  # px a side; the model's own if None
    nouns: tuple[str, ...] | None = None  # of the scenes; the whole vocabulary if None


Suite = Callable[["SnapGenPipeline", EvaluationSettings, Path, Callable[[str], None]], dict[str, Any]]
"""(pipeline, settings, folder, progress) -> the report; pictures and reports are written to the folder."""


def check_suites(names: list[str]) -> None:
    """Raise ValueError unless every one of `names` is a suite."""
    for name in names:
        if name not in SUITES:
            raise ValueError(f"there is no suite '{name}': use {', '.join(SUITES)}")


def load_suite(name: str) -> Suite:
    """The suite called `name`."""
    module, _, function = SUITES[name].partition(":")
    suite: Suite = getattr(import_module(module), function)
    return suite
