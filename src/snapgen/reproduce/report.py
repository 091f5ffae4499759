"""The report of a reproduction: scores and stages as JSON, and as Markdown for report.md and model cards."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from snapgen.config import Recipe
from snapgen.files import write_text
from snapgen.machine.device import default_device, device_name, library_versions
from snapgen.messages import between, markdown_table
from snapgen.reproduce.plan import Plan
from snapgen.train.report import read_metrics
from snapgen.train.stages.flow import FlowRecipe
from snapgen.world.source import SceneSettings
from snapgen.world.words import words_of_captions

LAST = 50  # steps whose mean loss is reported


class ModelScores(TypedDict):
    """A model and its scores in the suites `scenes` and `fid`."""

    name: str
    stage: str  # the stage that trained it
    model_sha256: str
    steps: int  # sampling steps
    guidance: float
    score: float
    interval: list[float]
    categories: dict[str, float]
    count: int  # pictures
    ceiling: float  # the score of ground truth after the autoencoder
    second_judge: float
    distance: float  # Frechet distance
    truth: float  # the Frechet distance of true renders


class AutoencoderScores(TypedDict):
    """The scores of the suite `psnr`."""

    psnr: float
    ssim: float
    count: int


class StageResult(TypedDict):
    """How a stage was trained."""

    stage: str
    steps: int
    batch_size: int
    samples: int
    seconds: float
    loss: float
    heldout: float | None
    late: bool


class Report(TypedDict):
    """The content of report.json."""

    name: str
    command: str
    initial: str | None
    minutes: dict[str, float]  # given, spent
    device: str
    versions: dict[str, str]
    models: list[ModelScores]
    autoencoder: AutoencoderScores
    data: dict[str, Any]  # the settings of the scenes
    stages: list[StageResult]


# From the results to the report


def model_scores(name: str, stage: str, scenes: dict[str, Any], fid: dict[str, Any]) -> ModelScores:
    """A model's scores, taken from the reports of the suites `scenes` and `fid`."""
    return {
        "name": name,
        "stage": stage,
        "model_sha256": scenes["manifest"]["model_sha256"],
        "steps": scenes["manifest"]["steps"],
        "guidance": scenes["manifest"]["guidance"],
        "score": scenes["score"],
        "interval": scenes["interval"],
        "categories": scenes["categories"],
        "count": scenes["count"],
        "ceiling": scenes["ceiling"]["score"],
        "second_judge": scenes["classifier"]["score"],
        "distance": fid["score"],
        "truth": fid["truth"],
    }


def autoencoder_scores(psnr: dict[str, Any]) -> AutoencoderScores:
    """The autoencoder's scores, taken from the report of the suite `psnr`."""
    return {"psnr": psnr["psnr"], "ssim": psnr["ssim"], "count": psnr["count"]}


def scenes_of(recipe: Recipe) -> SceneSettings:
    """The scenes that the students of `recipe` learn and are scored on; ValueError if the recipe has none."""
    if not isinstance(recipe, FlowRecipe) or not isinstance(recipe.data, SceneSettings):
        raise ValueError("reproduce scores scenes only: the recipe flow.yaml needs stage flow, and source scenes")
    return recipe.data


def make_report(
    plan: Plan, recipes: Mapping[str, Recipe], models: list[ModelScores], autoencoder: AutoencoderScores
) -> Report:
    """The report of the finished reproduction in the working directory; `recipes` by stage."""
    devices = [*(plan.chosen[stage].device for stage in plan.stages), device_name(default_device())]
    return {
        "name": plan.name,
        "command": plan.command,
        "initial": plan.initial,
        "minutes": {"given": plan.minutes, "spent": round(sum(plan.spent.values()) / 60, 2)},
        "device": ", then ".join(dict.fromkeys(devices)),
        "versions": library_versions(),
        "models": models,
        "autoencoder": autoencoder,
        "data": scenes_of(recipes["flow"]).model_dump(mode="json"),
        "stages": [stage_result(plan, stage, recipes[stage].train.batch_size) for stage in plan.stages],
    }


def stage_result(plan: Plan, stage: str, batch_size: int) -> StageResult:
    """How `stage` was trained, according to its plan and its run folder."""
    lines, chosen = read_metrics(Path(stage) / "metrics.jsonl"), plan.chosen[stage]
    return {
        "stage": stage,
        "steps": chosen.steps,
        "batch_size": batch_size,
        "samples": chosen.steps * batch_size,
        "seconds": round(plan.spent[stage], 1),
        "loss": statistics.fmean(line["loss"] for line in lines[-LAST:] if math.isfinite(line["loss"])),
        "heldout": lines[-1].get("eval/heldout"),
        "late": chosen.late,
    }


# From the report to Markdown


def write_report(report: Report) -> None:
    """Writes report.json and report.md to the working directory: tables, then curves and sheets of every stage."""
    lines = [f"# {report['name']}, made from {report['initial'] or 'nothing'}", "", *card(report)]
    for stage in (result["stage"] for result in report["stages"]):
        pictures = [*sorted(Path(stage, "plots").glob("*.png")), *sorted(Path(stage, "samples").glob("*.png"))[-1:]]
        lines += ["", f"## {stage}", "", *(f"![{picture.stem}]({picture.as_posix()})" for picture in pictures)]
    for model in report["models"]:
        sheet = f"evaluation/{model['stage']}/scenes/sheet.png"
        lines += ["", f"## {model['name']}, on the scene benchmark", "", f"![sheet]({sheet})"]
    write_text(json.dumps(report, indent=1), Path("report.json"))
    write_text("\n".join(lines), Path("report.md"))


def card(report: Report) -> list[str]:
    """The text of a model card for the models of a report: data, recipe, scores, limits; lines of Markdown."""
    data, last = report["data"], report["models"][-1]
    start = "" if report["initial"] is None else f", continuing from {report['initial']}"
    words = words_of_captions(SceneSettings.model_validate_json(json.dumps(data)))
    plurals = ", and their plurals" if words.pop("plurals", None) else ""
    words["nouns"][-1] += plurals
    right = [name for name, score in last["categories"].items() if score >= 0.5]
    wrong = [name for name in last["categories"] if name not in right]
    return [
        f"Trained on {data['count']:,} composed scenes{start}, and scored, by",
        "",
        "```sh",
        report["command"],
        "```",
        "",
        "The words that it has learned, in English (`snapgen data words`):",
        "",
        *(f"- {kind}: {', '.join(found)}" for kind, found in words.items()),
        "",
        *score_lines(report),
        "",
        *stage_lines(report),
        "",
        f"Of the categories, the last model gets right more often than not: {', '.join(right) or 'nothing'}. "
        f"More often wrong: {', '.join(wrong) or 'nothing'}.",
    ]


def score_lines(report: Report) -> list[str]:
    """The models' scores as Markdown, and how to read them."""
    categories = list(report["models"][0]["categories"])
    rows = [
        (
            model["name"],
            f"{model['steps']}" + (", guided" if model["guidance"] > 1 else ""),
            f"{model['score']:.1%}",
            between(model["interval"], ".1%"),
            *(f"{model['categories'][name]:.0%}" for name in categories),
            f"{model['second_judge']:.1%}",
            f"{model['distance']:.4g}",
        )
        for model in report["models"]
    ]
    header = ("model", "steps", "scene score", "95 % interval", *categories, "second judge", "Frechet distance")
    best, autoencoder = report["models"][0], report["autoencoder"]
    return [
        *markdown_table(header, rows),
        "",
        f"{best['count']} held-out pictures each. The score asks for the true outline and texture; the second judge, "
        "a small classifier, looks at the whole picture. Ground truth through the autoencoder scores "
        f"{best['ceiling']:.1%}, true renders have a distance of {best['truth']:.4g}; the autoencoder gives pictures "
        f"back at {autoencoder['psnr']:.2f} dB PSNR, {autoencoder['ssim']:.4f} SSIM.",
    ]


def stage_lines(report: Report) -> list[str]:
    """The stages as Markdown, with the time that they took."""
    rows = [
        (
            stage["stage"],
            f"{stage['steps']:,}",
            f"{stage['samples']:,}",
            f"{stage['seconds'] / 60:.1f}",
            *("" if loss is None else f"{loss:.4g}" for loss in (stage["loss"], stage["heldout"])),
        )
        for stage in report["stages"]
    ]
    late = [stage["stage"] for stage in report["stages"] if stage["late"]]
    return [
        *markdown_table(("stage", "steps", "samples", "minutes", "loss", "held-out loss"), rows),
        "",
        f"{report['minutes']['spent']:.1f} minutes of {report['minutes']['given']:g} given, on {report['device']}.",
        *([f"No time was left for {', '.join(late)}: the fewest steps were trained."] if late else []),
    ]
