"""The suite "scenes": the benchmark of the embedded world, made as GenEval is.

Protocol. Prompts of GenEval's six categories (single object, two objects, counting, colours, position, colour
attribution), of held-out compositions and, for comparison, of compositions that training sees (scene_prompts.py); a
picture a prompt and seed; objects found by a template detector (detector.py); verdicts by GenEval's rules
(verdicts.py). The score is the mean of the six categories' shares of right pictures, held-out compositions only.

A detector that fails silently would give wrong scores, so every run measures it, and the report holds beside the score:

- detector: ground-truth renders of the benchmark's scenes that it reads exactly (all objects, no other, right colours
  and background, and the verdict). The suite refuses below 98 % in any category.
- ceiling: the same renders through the model's autoencoder: what the best diffusion model on it could reach.
- floor: ground truth judged by the prompts of other pictures, and blobs and noise judged by all prompts. The suite
  refuses above 10 %.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from snapgen.data.ground_truth import CATEGORIES
from snapgen.data.pictures import to_tensor, to_uint8
from snapgen.data.preview import contact_sheet, save_png
from snapgen.data.scenes import background_picture
from snapgen.data.sprites import font_sha256
from snapgen.data.vocabulary import BACKGROUNDS, COLORS
from snapgen.evaluation import EvaluationSettings
from snapgen.evaluation.detector import SceneDetector, Sighting
from snapgen.evaluation.generation import Request, draw_pictures, make_manifest, picture_side
from snapgen.evaluation.plots import plot_bars
from snapgen.evaluation.report import between, origin, table, write_report
from snapgen.evaluation.scene_prompts import SPLITS, ScenePrompt, renderer, scene_prompts
from snapgen.evaluation.statistics import interval_of_mean, wilson
from snapgen.evaluation.verdicts import Verdict, judge
from snapgen.pipeline import SnapGenPipeline

COUNT = 50  # prompts a category, unless asked otherwise
MIN_ACCURACY = 0.98  # of the detector in every category
MIN_RENDERS = 50  # a category that the detector is measured on
MAX_FLOOR = 0.10  # mean score of pictures that show something else
COLUMNS, ROWS = 8, 2  # of the contact sheet, a category

Progress = Callable[[str], None]


@dataclass(frozen=True)
class JudgedPicture:
    """A generated picture with what was seen in it."""

    prompt: ScenePrompt
    seed: int
    file: str  # relative to the suite's folder
    sighting: Sighting
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        """A line of the report."""
        return {
            "file": self.file,
            "split": self.prompt.split,
            "category": self.prompt.category,
            "prompt": self.prompt.prompt,
            "seed": self.seed,
            "verdict": asdict(self.verdict),
            "seen": asdict(self.sighting),
        }


def evaluate_scenes(
    pipeline: SnapGenPipeline, settings: EvaluationSettings, folder: Path, progress: Progress
) -> dict[str, Any]:
    """Scores `pipeline`, writes pictures and reports to `folder`, returns the report.

    Raises ValueError if the detector or a canary fails, `FontMissingError` without the font.
    """
    detector = SceneDetector()
    side, count = picture_side(pipeline, settings), settings.count or COUNT
    truths = scene_prompts("heldout", max(count, MIN_RENDERS), settings.nouns)
    progress(f"detector: reading {len(truths)} ground-truth renders")
    draw = renderer(side)
    renders = [draw.render(truth.scene) for truth in truths]
    sightings = [detector(render) for render in renders]
    accuracy = shares(truths, [reads_exactly(truth, seen) for truth, seen in zip(truths, sightings, strict=True)])
    check_accuracy(accuracy, side)
    floor = {
        "shuffled": mean(shares(truths, judged(truths, shuffled(truths, sightings)))),
        "random": mean(shares(truths, judged(truths, cycled(detector, side, len(truths))))),
    }
    check_floor(floor)
    kept = [i for i, truth in enumerate(truths) if truth.index < count]
    progress(f"ceiling: {len(kept)} renders through the autoencoder")
    through = [detector(picture) for picture in reconstruct(pipeline.vae, [renders[i] for i in kept])]
    ceiling = shares([truths[i] for i in kept], judged([truths[i] for i in kept], through))

    prompts = [prompt for split in SPLITS for prompt in scene_prompts(split, count, settings.nouns)]
    asked = [[prompt.name, prompt.prompt, prompt.scene.to_json()] for prompt in prompts]
    manifest = make_manifest("scenes", pipeline, settings, settings.seeds or (0,), asked) | {
        "font_sha256": font_sha256(),
        "prompts_per_category": count,
        "nouns": "all" if settings.nouns is None else list(settings.nouns),
    }
    pictures = judge_pictures(pipeline, detector, prompts, folder, manifest, progress)
    report = summarize([picture for picture in pictures if picture.prompt.split == "heldout"]) | {
        "detector": accuracy,
        "detector_renders": len(truths) // len(CATEGORIES),
        "ceiling": {"score": mean(ceiling), "categories": ceiling},
        "floor": floor,
        "train": summarize([picture for picture in pictures if picture.prompt.split == "train"]),
        "manifest": manifest,
    }
    lines = [picture.to_json() for picture in pictures]
    marks = {"ceiling": ceiling, "seen in training": report["train"]["categories"]}
    figure = plot_bars("right pictures", report["categories"], report["category_intervals"], marks)
    save_png(sheet(pictures, folder), folder / "sheet.png")
    write_report(f"scenes: {report['score']:.1%}", report, summary(report), figure, lines, folder)
    return report


def judge_pictures(
    pipeline: SnapGenPipeline,
    detector: SceneDetector,
    prompts: Sequence[ScenePrompt],
    folder: Path,
    manifest: dict[str, Any],
    progress: Progress,
) -> list[JudgedPicture]:
    """Every prompt drawn with every seed, and judged."""
    pairs = [(prompt, seed) for prompt in prompts for seed in manifest["seeds"]]
    requests = [Request(f"{prompt.name}-{seed}", prompt.prompt, seed) for prompt, seed in pairs]
    files = draw_pictures(
        pipeline, requests, folder / "pictures", manifest, progress, more={"nouns": manifest["nouns"]}
    )
    judged_pictures = []
    for (prompt, seed), file in zip(pairs, files, strict=True):
        with Image.open(file) as image:
            seen = detector(np.asarray(image.convert("RGB")))
        name = file.relative_to(folder).as_posix()
        judged_pictures.append(JudgedPicture(prompt, seed, name, seen, judge(prompt.scene, seen)))
    return judged_pictures


def summarize(pictures: Sequence[JudgedPicture]) -> dict[str, Any]:
    """Score, its parts, their 95 % intervals and why pictures failed."""
    rights = {
        category: [picture.verdict.correct for picture in pictures if picture.prompt.category == category]
        for category in CATEGORIES
    }
    tallies = {category: (sum(right), len(right)) for category, right in rights.items()}
    stated = [picture for picture in pictures if picture.prompt.scene.background_stated]
    seeds = sorted({picture.seed for picture in pictures})
    categories: dict[str, float] = {category: round(right / count, 4) for category, (right, count) in tallies.items()}
    return {
        "score": mean(categories),
        "interval": [round(bound, 4) for bound in interval_of_mean(list(tallies.values()))],
        "categories": categories,
        "category_intervals": {
            category: [round(bound, 4) for bound in wilson(*tally)] for category, tally in tallies.items()
        },
        "count": len(pictures),
        "by_seed": {
            str(seed): mean(
                shares(
                    [picture.prompt for picture in pictures if picture.seed == seed],
                    [picture.verdict.correct for picture in pictures if picture.seed == seed],
                )
            )
            for seed in seeds
        },
        "failures": {
            category: dict(
                Counter(p.verdict.rule for p in pictures if p.prompt.category == category and not p.verdict.correct)
            )
            for category in CATEGORIES
        },
        # No category of GenEval's, so no part of the score.
        "background": {
            "right": sum(picture.sighting.background == picture.prompt.scene.background for picture in stated),
            "stated": len(stated),
        },
    }


def sheet(pictures: Sequence[JudgedPicture], folder: Path) -> Image.Image:
    """The first held-out pictures of every category, each above its verdict and prompt."""
    chosen: list[JudgedPicture] = []
    for category in CATEGORIES:
        members = [p for p in pictures if (p.prompt.split, p.prompt.category) == ("heldout", category)]
        chosen += members[: ROWS * COLUMNS]
    marks = ["RIGHT" if p.verdict.correct else f"WRONG ({p.verdict.reason})" for p in chosen]
    captions = [f"{mark}: {picture.prompt.prompt}" for mark, picture in zip(marks, chosen, strict=True)]
    return contact_sheet([np.asarray(Image.open(folder / p.file)) for p in chosen], captions, COLUMNS)


def summary(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    manifest, train, ceiling = report["manifest"], report["train"], report["ceiling"]
    rows = [
        (
            category,
            f"{score:.1%}",
            between(report["category_intervals"][category], ".1%"),
            f"{train['categories'][category]:.1%}",
            f"{ceiling['categories'][category]:.1%}",
            f"{report['detector'][category]:.1%}",
            ", ".join(f"{rule} {number}" for rule, number in report["failures"][category].items()),
        )
        for category, score in report["categories"].items()
    ]
    interval, detector = between(report["interval"], ".1%"), mean(report["detector"])
    rows.append(
        (
            "mean",
            f"{report['score']:.1%}",
            interval,
            f"{train['score']:.1%}",
            f"{ceiling['score']:.1%}",
            f"{detector:.1%}",
            "",
        )
    )
    columns = ("category", "score", "95 % interval", "seen in training", "ceiling", "detector", "failures")
    floor, background = report["floor"], report["background"]
    seeds = ", ".join(f"{seed} {score:.1%}" for seed, score in report["by_seed"].items())
    lines = [
        f"# scenes: {report['score']:.1%}",
        "",
        f"Mean of the categories on held-out compositions, 95 % interval {interval}, {report['count']} pictures.",
        "",
        *table(columns, rows),
        "",
        f"By seed: {seeds}. Floor: shuffled prompts {floor['shuffled']:.1%}, random pictures {floor['random']:.1%}. "
        f"Backgrounds asked for: {background['right']} of {background['stated']} right.",
        "",
        origin(manifest) + ("." if manifest["nouns"] == "all" else f", of {len(manifest['nouns'])} nouns only."),
    ]
    return "\n".join(lines)


def reads_exactly(truth: ScenePrompt, seen: Sighting) -> bool:
    """Whether the detector saw in a render all that is there and nothing else."""
    return (
        judge(truth.scene, seen).correct
        and len(seen.objects) == len(truth.scene.objects)
        and seen.background == truth.scene.background
    )


def judged(prompts: Sequence[ScenePrompt], sightings: Sequence[Sighting]) -> list[bool]:
    """Whether each sighting is what its prompt asks for."""
    return [judge(prompt.scene, seen).correct for prompt, seen in zip(prompts, sightings, strict=True)]


def shares(prompts: Sequence[ScenePrompt], right: Sequence[bool]) -> dict[str, float]:
    """The share of `right` in each category."""
    return {
        category: round(float(np.mean([r for p, r in zip(prompts, right, strict=True) if p.category == category])), 4)
        for category in CATEGORIES
    }


def mean(categories: dict[str, float]) -> float:
    """The mean over the categories, as GenEval's overall score."""
    return round(sum(categories.values()) / len(categories), 4)


def shuffled(prompts: Sequence[ScenePrompt], sightings: Sequence[Sighting]) -> list[Sighting]:
    """For every prompt what was seen for the next of its category that asks for other nouns; nothing if none does."""
    nouns = [{placed.name for placed in prompt.scene.objects} for prompt in prompts]
    moved: list[Sighting] = []
    for i, prompt in enumerate(prompts):
        following = [*range(i + 1, len(prompts)), *range(i)]
        others = (j for j in following if prompts[j].category == prompt.category and nouns[j] != nouns[i])
        other = next(others, None)
        moved.append(Sighting((), None) if other is None else sightings[other])
    return moved


def cycled(detector: SceneDetector, side: int, count: int) -> list[Sighting]:
    """What is seen in random pictures, `count` times one of them."""
    sightings = [detector(picture) for picture in random_pictures(side)]
    return [sightings[i % len(sightings)] for i in range(count)]


def random_pictures(side: int) -> list[np.ndarray]:
    """Pictures that show no object: coloured ellipses on every background, and noise, fine and coarse."""
    rng = np.random.default_rng(0)
    pictures = []
    for number, background in enumerate(BACKGROUNDS):
        blobs = Image.fromarray(background_picture(background.name, 128))
        canvas = ImageDraw.Draw(blobs)
        for _ in range(1 + number % 3):
            width, height, left, top = rng.integers((24, 24, 2, 2), (60, 60, 64, 64)).tolist()
            color = list(COLORS.values())[int(rng.integers(len(COLORS)))]
            canvas.ellipse((left, top, left + width, top + height), fill=color)
        cells = 128 if number % 2 else 16
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        pictures += [blobs.resize((side, side)), noise.resize((side, side))]
    return [np.asarray(picture) for picture in pictures]


@torch.no_grad()
def reconstruct(autoencoder: Any, pictures: Sequence[np.ndarray], batch: int = 16) -> list[np.ndarray]:
    """`pictures` (uint8 H W 3, of one size) through the autoencoder."""
    result: list[np.ndarray] = []
    for start in range(0, len(pictures), batch):
        inputs = to_tensor(list(pictures[start : start + batch])).to(autoencoder.device, autoencoder.dtype)
        result += to_uint8(autoencoder(inputs, return_dict=False)[0])
    return result


def check_accuracy(accuracy: dict[str, float], side: int) -> None:
    """Raise ValueError if scores by this detector would mean nothing."""
    worst = min(accuracy, key=lambda category: accuracy[category])
    if accuracy[worst] < MIN_ACCURACY:
        raise ValueError(
            f"no score: the detector reads only {accuracy[worst]:.1%} of ground-truth renders of {side} px right in "
            f"{worst}, at least {MIN_ACCURACY:.0%} are needed"
        )


def check_floor(floor: dict[str, float]) -> None:
    """Raise ValueError if pictures of something else are right too often."""
    for name, score in floor.items():
        if score > MAX_FLOOR:
            raise ValueError(f"no score: {name} pictures reach {score:.1%}, more than {MAX_FLOOR:.0%}")
