"""Suites that score one picture at a time (CLIP, ImageReward): read prompts, generate, judge, report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snapgen.files import read_prompts
from snapgen.messages import counted

if TYPE_CHECKING:
    from PIL.Image import Image

    from snapgen.evaluation import EvaluationSettings
    from snapgen.messages import Notify
    from snapgen.pipeline.text_to_image import SnapGenPipeline


def some_prompts(path: Path) -> list[str]:
    """The prompts of `path`; ValueError if there are none."""
    if not (prompts := read_prompts(path)):
        raise ValueError(f"{path} holds no prompts")
    return prompts


def score_prompts(
    suite: str,
    pipeline: SnapGenPipeline,
    settings: EvaluationSettings,
    folder: Path,
    progress: Notify,
    judge: Callable[[str, Image], float],
    judged_by: dict[str, Any],
    label: str,
) -> dict[str, Any]:
    """Generate all prompts with all seeds, score each picture with `judge(prompt, picture)`; write and return a report.

    The score is the mean over all pictures. Its interval is over the means of prompts, because pictures of one prompt
    are not independent. `judged_by`: the judge in the manifest; `label`: the score's name in the plot.
    """
    from snapgen.evaluation import required_prompts
    from snapgen.evaluation.generation import Request, generate_pictures, make_manifest
    from snapgen.evaluation.plots import plot_spread
    from snapgen.evaluation.report import score_summary, write_report
    from snapgen.evaluation.statistics import interval_of_values
    from snapgen.pictures import read_rgb

    prompts = some_prompts(required_prompts(suite, settings))
    manifest = make_manifest(suite, pipeline, settings, settings.seeds or (0,), prompts) | judged_by
    requests = [
        Request(f"{index:05d}-{seed}", prompt, seed)
        for index, prompt in enumerate(prompts)
        for seed in manifest["seeds"]
    ]
    files = generate_pictures(pipeline, requests, folder / "pictures", manifest, progress)
    progress(f"scoring {len(files)} pictures")
    lines: list[dict[str, Any]] = []
    for request, file in counted(zip(requests, files, strict=True), progress, "scoring", len(files)):
        score = judge(request.prompt, read_rgb(file))
        name = file.relative_to(folder).as_posix()
        lines.append({"file": name, "prompt": request.prompt, "seed": request.seed, "score": score})
    values = [line["score"] for line in lines]
    number = len(manifest["seeds"])
    of_prompts = [sum(values[i : i + number]) / number for i in range(0, len(values), number)]
    report = {
        "score": sum(values) / len(values),
        "interval": interval_of_values(of_prompts),
        "by_seed": {str(seed): sum(values[i::number]) / len(prompts) for i, seed in enumerate(manifest["seeds"])},
        "count": len(values),
        "manifest": manifest,
    }
    title = f"{suite}: {report['score']:.4f}"
    notes = [f"{label}, by {judged_by['judge']}; mean over {len(prompts)} prompts with {number} seeds."]
    figure = plot_spread(label, values, report["score"])
    write_report(title, report, score_summary(title, report, ".4f", notes), figure, lines, folder)
    return report
