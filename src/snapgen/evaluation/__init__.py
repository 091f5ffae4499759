"""The benchmarks that score a model, by name, and their common settings. A suite is one file and a line in `SUITES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapgen.messages import Notify
from snapgen.registry import load_attribute

SAMPLING = ("seeds", "steps", "guidance", "guidance-interval")  # options of suites that generate pictures


@dataclass(frozen=True)
class SuiteEntry:
    """Where a suite is defined, and what it takes."""

    function: str  # module:function of type `Suite`, imported when it runs
    takes: tuple[str, ...] = ("count", "nouns", *SAMPLING)  # options that only some suites take
    subjects: tuple[str, ...] = ("model",)  # what is scored: "model", "autoencoder" or "pictures" (a folder)
    needs: str = ""  # what --prompts must name, where it is required


SUITES = {  # by the name on the command line
    "scenes": SuiteEntry("snapgen.evaluation.suites.scenes:evaluate_scenes"),
    "clip": SuiteEntry(
        "snapgen.evaluation.suites.clip:evaluate_clip",
        ("prompts", "weights", *SAMPLING),
        needs="FILE, a text file with one prompt per line",
    ),
    "imagereward": SuiteEntry(
        "snapgen.evaluation.suites.imagereward:evaluate_imagereward",
        ("prompts", "weights", *SAMPLING),
        needs="FILE, a text file with one prompt per line",
    ),
    "geneval": SuiteEntry(
        "snapgen.evaluation.suites.geneval:evaluate_geneval",
        ("prompts", "weights", *SAMPLING),
        needs="evaluation_metadata.jsonl, from github.com/djghosh13/geneval/prompts",
    ),
    "dpg": SuiteEntry(
        "snapgen.evaluation.suites.dpg:evaluate_dpg",
        ("prompts", "weights", *SAMPLING),
        needs="FOLDER with prompts/ and dpg_bench.csv: dpg_bench of github.com/TencentQQGYLab/ELLA",
    ),
    "fid": SuiteEntry(
        "snapgen.evaluation.suites.fid:evaluate_fid",
        ("count", "nouns", "prompts", "reference", "weights", "features", *SAMPLING),
        ("model", "pictures"),
    ),
    "psnr": SuiteEntry(
        "snapgen.evaluation.suites.psnr:evaluate_psnr", ("count", "reference", "weights"), ("model", "autoencoder")
    ),
}
SUBJECTS = {"model": "a model", "autoencoder": "the folder of an autoencoder", "pictures": "a folder of pictures"}


@dataclass(frozen=True)
class EvaluationSettings:
    """The options of a run; None means the suite's or the model's own value."""

    count: int | None = None  # prompts per category, or pictures
    seeds: tuple[int, ...] | None = None  # one picture per prompt and seed
    steps: int | None = None
    guidance: float | None = None
    guidance_interval: tuple[float, float] | None = None  # noise levels at which guidance is on; all if None
    size: int | None = None  # side of the pictures, px
    nouns: tuple[str, ...] | None = None  # of the scenes; the whole vocabulary if None
    prompts: Path | None = None  # what to generate, in the format that the suite expects
    reference: Path | None = None  # what to compare with
    weights: str | None = None  # of the network that judges: a path, or a name on the hub
    features: str | None = None  # the network whose features are compared


Suite = Callable[[Any, EvaluationSettings, Path, Notify], dict[str, Any]]
"""(subject, settings, folder, progress) -> the report; pictures and reports are written to the folder."""


def check_suites(names: list[str]) -> None:
    """Raise ValueError unless all `names` are suites."""
    for name in names:
        if name not in SUITES:
            raise ValueError(f"there is no suite '{name}': use {', '.join(SUITES)}")


def check_options(names: list[str], given: list[str]) -> None:
    """Raise ValueError if none of the suites takes an option of `given`."""
    for option in given:
        if not any(option in SUITES[name].takes for name in names):
            takers = ", ".join(name for name, entry in SUITES.items() if option in entry.takes)
            raise ValueError(f"{', '.join(names)}: --{option} does not apply here, only to {takers}")


def check_subject(names: list[str], kind: str) -> None:
    """Raise ValueError unless all suites can score a subject of this `kind`."""
    for name in names:
        if kind not in (subjects := SUITES[name].subjects):
            raise ValueError(f"the suite {name} scores {' or '.join(SUBJECTS[s] for s in subjects)}, no {kind} folder")


def required_prompts(name: str, settings: EvaluationSettings) -> Path:
    """Return `settings.prompts`; without any, raise ValueError saying what the suite `name` needs."""
    if settings.prompts is None:
        raise ValueError(f"{name} needs --prompts {SUITES[name].needs}")
    return settings.prompts


def load_suite(name: str) -> Suite:
    """The suite called `name`."""
    suite: Suite = load_attribute(SUITES[name].function)
    return suite
