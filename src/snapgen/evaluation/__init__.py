"""Measuring models. A suite is one file here and one line in `SUITES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapgen.registry import load_attribute

DRAWING = ("seeds", "steps", "guidance")  # options of suites that draw


@dataclass(frozen=True)
class SuiteEntry:
    """Where a suite is, and what it takes."""

    function: str  # module:function of the type `Suite`, imported when run
    takes: tuple[str, ...] = ("count", "nouns", *DRAWING)  # options that not every suite has a meaning for
    subjects: tuple[str, ...] = ("model",)  # what is scored: "model", "autoencoder" or "pictures" (a folder)
    needs: str = ""  # what --prompts must name, if it must be given


SUITES = {  # by the name on the command line
    "scenes": SuiteEntry("snapgen.evaluation.suites.scenes:evaluate_scenes"),
    "clip": SuiteEntry(
        "snapgen.evaluation.suites.clip:evaluate_clip",
        ("prompts", "weights", *DRAWING),
        needs="FILE, a text file with a prompt a line",
    ),
    "imagereward": SuiteEntry(
        "snapgen.evaluation.suites.imagereward:evaluate_imagereward",
        ("prompts", "weights", *DRAWING),
        needs="FILE, a text file with a prompt a line",
    ),
    "geneval": SuiteEntry(
        "snapgen.evaluation.suites.geneval:evaluate_geneval",
        ("prompts", "weights", *DRAWING),
        needs="evaluation_metadata.jsonl, from github.com/djghosh13/geneval/prompts",
    ),
    "dpg": SuiteEntry(
        "snapgen.evaluation.suites.dpg:evaluate_dpg",
        ("prompts", "weights", *DRAWING),
        needs="FOLDER with prompts/ and dpg_bench.csv: dpg_bench of github.com/TencentQQGYLab/ELLA",
    ),
    "fid": SuiteEntry(
        "snapgen.evaluation.suites.fid:evaluate_fid",
        ("count", "nouns", "prompts", "reference", "weights", "features", *DRAWING),
        ("model", "pictures"),
    ),
    "psnr": SuiteEntry(
        "snapgen.evaluation.suites.psnr:evaluate_psnr", ("count", "reference"), ("model", "autoencoder")
    ),
}
SUBJECTS = {"model": "a model", "autoencoder": "the folder of an autoencoder", "pictures": "a folder of pictures"}


@dataclass(frozen=True)
class EvaluationSettings:
    """What a run of a suite is asked for; None leaves a value to the suite or to the model."""

    count: int | None = None  # prompts a category, or pictures
    seeds: tuple[int, ...] | None = None  # a picture a prompt and seed
    steps: int | None = None
    guidance: float | None = None
    size: int | None = None  # px a side
    nouns: tuple[str, ...] | None = None  # of the scenes; the whole vocabulary if None
    prompts: Path | None = None  # what is drawn; its form is the suite's
    reference: Path | None = None  # what is compared with
    weights: str | None = None  # of the network that judges: a path, or a name on the hub
    features: str | None = None  # the network that pictures are compared by


Suite = Callable[[Any, EvaluationSettings, Path, Callable[[str], None]], dict[str, Any]]
"""(subject, settings, folder, progress) -> the report; pictures and reports are written to the folder."""


def check_suites(names: list[str]) -> None:
    """Raise ValueError unless every one of `names` is a suite."""
    for name in names:
        if name not in SUITES:
            raise ValueError(f"there is no suite '{name}': use {', '.join(SUITES)}")


def check_options(names: list[str], given: list[str]) -> None:
    """Raise ValueError if an option of `given` has no meaning for any of the suites."""
    for option in given:
        if not any(option in SUITES[name].takes for name in names):
            takers = ", ".join(name for name, entry in SUITES.items() if option in entry.takes)
            raise ValueError(f"{', '.join(names)}: --{option} is not for it, but for {takers}")


def check_subject(names: list[str], kind: str) -> None:
    """Raise ValueError unless all suites score a subject of this `kind`."""
    for name in names:
        if kind not in (subjects := SUITES[name].subjects):
            raise ValueError(f"the suite {name} scores {' or '.join(SUBJECTS[s] for s in subjects)}, no {kind} folder")


def required_prompts(name: str, settings: EvaluationSettings) -> Path:
    """`settings.prompts`; ValueError saying what the suite called `name` needs if there are none."""
    if settings.prompts is None:
        raise ValueError(f"{name} needs --prompts {SUITES[name].needs}")
    return settings.prompts


def load_suite(name: str) -> Suite:
    """The suite called `name`."""
    suite: Suite = load_attribute(SUITES[name].function)
    return suite
