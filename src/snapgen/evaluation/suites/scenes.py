"""The suite "scenes": the embedded world's own benchmark, built like GenEval.

Protocol. Prompts come from GenEval's six categories (single object, two objects, counting, colours, position, colour
attribution), with held-out compositions and, for comparison, compositions seen in training (world/prompts.py). One
picture is generated per prompt and seed. A template detector finds the objects (world/judge/detector.py), and GenEval's
rules give the verdicts (world/judge/verdicts.py). The score is the mean of the six categories' shares of right
pictures, over held-out compositions only.

A detector that fails silently would give wrong scores, so every run tests it and reports, beside the score:

- detector: the share of ground-truth renders of the benchmark's scenes that it reads exactly (all objects, no others,
  right colours and background, right verdict). Below 98 % in any category, the suite gives no score.
- ceiling: the score of the same renders after the model's autoencoder: the best that a diffusion model on it can reach.
- floor: the score of renders judged by other pictures' prompts, and of blobs and noise judged by all prompts. Above
  10 %, the suite gives no score.
- classifier: the opinion of an independent network (world/judge/reader.py) on the same pictures, its agreement with the
  detector, and its own accuracy, ceiling and floor. It does not change the score.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from snapgen.detection import Verdict
from snapgen.evaluation import EvaluationSettings
from snapgen.evaluation.generation import Request, generate_pictures, make_manifest, picture_side, reconstruct
from snapgen.evaluation.plots import plot_bars
from snapgen.evaluation.report import origin, write_report
from snapgen.evaluation.statistics import cohen_kappa, effective_tally, interval_of_mean, wilson
from snapgen.messages import Notify, between, counted, markdown_table
from snapgen.pictures import contact_sheet, read_rgb, save_png
from snapgen.pipeline.text_to_image import SnapGenPipeline
from snapgen.world.font import font_sha256
from snapgen.world.judge.canaries import (
    check_accuracy,
    check_floor,
    counts_exactly,
    floor_of,
    mean,
    random_pictures,
    reads_exactly,
    score_of,
    shares,
)
from snapgen.world.judge.detector import SceneDetector, Sighting
from snapgen.world.judge.reader import SceneReader, opinion_summary
from snapgen.world.judge.verdicts import judge
from snapgen.world.prompts import SPLITS, ScenePrompt, renderer, scene_prompts
from snapgen.world.scene import CATEGORIES

COUNT = 50  # prompts per category, by default
MIN_RENDERS = 50  # per category, to test the detector on
COLUMNS, ROWS = 8, 2  # of the contact sheet, per category


@dataclass(frozen=True)
class JudgedPicture:
    """A generated picture with what the two judges saw in it."""

    prompt: ScenePrompt
    seed: int
    file: str  # relative to the suite's folder
    sighting: Sighting
    verdict: Verdict
    read: Sighting  # by the classifier
    opinion: Verdict

    def to_json(self) -> dict[str, Any]:
        """The picture's line in the report."""
        return {
            "file": self.file,
            "split": self.prompt.split,
            "category": self.prompt.category,
            "prompt": self.prompt.prompt,
            "seed": self.seed,
            "verdict": asdict(self.verdict),
            "seen": asdict(self.sighting),
            "opinion": asdict(self.opinion),
            "read": [(seen.name, seen.color, seen.score) for seen in self.read.objects],
        }


def evaluate_scenes(
    pipeline: SnapGenPipeline, settings: EvaluationSettings, folder: Path, progress: Notify
) -> dict[str, Any]:
    """Score `pipeline`, write pictures and report to `folder`, return the report.

    Raises ValueError if the detector or a canary fails, `FontMissingError` if the font is missing.
    """
    font = font_sha256()  # first: without the font, nothing else makes sense
    detector, reader = SceneDetector(nouns=settings.nouns), SceneReader()
    side, count = picture_side(pipeline, settings), settings.count or COUNT
    truths = scene_prompts("heldout", max(count, MIN_RENDERS), settings.nouns)
    progress(f"detector: reading {len(truths)} ground-truth renders")
    draw = renderer(side)
    renders = [draw.render(truth.scene) for truth in truths]
    sightings = [detector(render) for render in counted(renders, progress, "detector: reading", len(renders))]
    accuracy = shares(truths, [reads_exactly(truth, seen) for truth, seen in zip(truths, sightings, strict=True)])
    check_accuracy(accuracy, side)
    nothing = random_pictures(side)
    floor = floor_of(truths, sightings, [detector(picture) for picture in nothing])
    check_floor(floor)
    kept = [i for i, truth in enumerate(truths) if truth.index < count]
    progress(f"ceiling: {len(kept)} renders through the autoencoder")
    asked_for, through = [truths[i] for i in kept], reconstruct(pipeline.vae, [renders[i] for i in kept])
    seen_through = [detector(picture) for picture in counted(through, progress, "ceiling: reading", len(through))]
    ceiling = score_of(asked_for, seen_through)
    read = reader(renders)
    measured = {
        "accuracy": shares(truths, [counts_exactly(truth, seen) for truth, seen in zip(truths, read, strict=True)]),
        "ceiling": score_of(asked_for, reader(through)),
        "floor": floor_of(truths, read, reader(nothing)),
    }

    prompts = [prompt for split in SPLITS for prompt in scene_prompts(split, count, settings.nouns)]
    asked = [[prompt.name, prompt.prompt, prompt.scene.to_json()] for prompt in prompts]
    manifest = make_manifest("scenes", pipeline, settings, settings.seeds or (0,), asked) | {
        "font_sha256": font,
        "classifier_sha256": reader.sha256,
        "prompts_per_category": count,
        "nouns": "all" if settings.nouns is None else list(settings.nouns),
    }
    pictures = judge_pictures(pipeline, detector, reader, prompts, folder, manifest, progress)
    heldout, train = ([picture for picture in pictures if picture.prompt.split == split] for split in SPLITS)
    report = summarize(heldout) | {
        "detector": accuracy,
        "detector_renders": len(truths) // len(CATEGORIES),
        "ceiling": ceiling,
        "floor": floor,
        "train": summarize(train),
        "classifier": second_opinion(heldout) | {"train": second_opinion(train)} | measured,
        "manifest": manifest,
    }
    lines = [picture.to_json() for picture in pictures]
    marks = {
        "ceiling": ceiling["categories"],
        "seen in training": report["train"]["categories"],
        "classifier's opinion": report["classifier"]["categories"],
    }
    figure = plot_bars("right pictures", report["categories"], report["category_intervals"], marks)
    save_png(sheet(pictures, folder), folder / "sheet.png")
    write_report(f"scenes: {report['score']:.1%}", report, summary(report), figure, lines, folder)
    return report


def judge_pictures(
    pipeline: SnapGenPipeline,
    detector: SceneDetector,
    reader: SceneReader,
    prompts: Sequence[ScenePrompt],
    folder: Path,
    manifest: dict[str, Any],
    progress: Notify,
) -> list[JudgedPicture]:
    """Generate a picture for every prompt and seed; both judges look at each."""
    pairs = [(prompt, seed) for prompt in prompts for seed in manifest["seeds"]]
    requests = [Request(f"{prompt.name}-{seed}", prompt.prompt, seed) for prompt, seed in pairs]
    files = generate_pictures(
        pipeline, requests, folder / "pictures", manifest, progress, more={"nouns": manifest["nouns"]}
    )
    judged_pictures = []
    progress(f"judging {len(files)} pictures")
    for (prompt, seed), file in counted(zip(pairs, files, strict=True), progress, "judging", len(files)):
        picture = np.asarray(read_rgb(file))
        name, seen, (read,) = file.relative_to(folder).as_posix(), detector(picture), reader([picture])
        verdict, opinion = judge(prompt.scene, seen), judge(prompt.scene, read)
        judged_pictures.append(JudgedPicture(prompt, seed, name, seen, verdict, read, opinion))
    return judged_pictures


def summarize(pictures: Sequence[JudgedPicture]) -> dict[str, Any]:
    """The score, the categories' scores, their 95 % intervals and why pictures failed."""
    rights: dict[str, dict[str, list[bool]]] = {category: {} for category in CATEGORIES}
    for picture in pictures:
        rights[picture.prompt.category].setdefault(picture.prompt.name, []).append(picture.verdict.correct)
    tallies = {category: effective_tally(of_prompts.values()) for category, of_prompts in rights.items()}
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
        # Not one of GenEval's categories, so not part of the score.
        "background": {
            "right": sum(picture.sighting.background == picture.prompt.scene.background for picture in stated),
            "stated": len(stated),
        },
    }


def second_opinion(pictures: Sequence[JudgedPicture]) -> dict[str, Any]:
    """The classifier's score, and its agreement with the detector: the share of equal verdicts, and kappa."""
    agreement = {}
    for category in ("all", *CATEGORIES):
        pairs = [
            (picture.verdict.correct, picture.opinion.correct)
            for picture in pictures
            if category in ("all", picture.prompt.category)
        ]
        equal, kappa = cohen_kappa(pairs)
        agreement[category] = {"equal": round(equal, 4), "kappa": None if kappa is None else round(kappa, 4)}
    return score_of([p.prompt for p in pictures], [p.read for p in pictures]) | {"agreement": agreement}


def sheet(pictures: Sequence[JudgedPicture], folder: Path) -> Image.Image:
    """A contact sheet: the first held-out pictures of every category, each above its verdict and prompt."""
    chosen: list[JudgedPicture] = []
    for category in CATEGORIES:
        members = [p for p in pictures if (p.prompt.split, p.prompt.category) == ("heldout", category)]
        chosen += members[: ROWS * COLUMNS]
    marks = ["RIGHT" if p.verdict.correct else f"WRONG ({p.verdict.reason})" for p in chosen]
    captions = [f"{mark}: {picture.prompt.prompt}" for mark, picture in zip(marks, chosen, strict=True)]
    return contact_sheet([np.asarray(read_rgb(folder / p.file)) for p in chosen], captions, COLUMNS)


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
        *markdown_table(columns, rows),
        "",
        f"By seed: {seeds}. Floor: shuffled prompts {floor['shuffled']:.1%}, random pictures {floor['random']:.1%}. "
        f"Backgrounds asked for: {background['right']} of {background['stated']} right.",
        "",
        *opinion_summary(report["classifier"]),
        "",
        origin(manifest) + ("." if manifest["nouns"] == "all" else f", of {len(manifest['nouns'])} nouns only."),
    ]
    return "\n".join(lines)
