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
from snapgen.data.scenes import background_picture
from snapgen.data.sprites import font_sha256
from snapgen.data.vocabulary import BACKGROUNDS, COLORS
from snapgen.evaluation import EvaluationSettings
from snapgen.evaluation.detector import SceneDetector, Sighting
from snapgen.evaluation.generation import Request, draw_pictures, fingerprint, model_hash
from snapgen.evaluation.report import library_versions, write_report
from snapgen.evaluation.scene_prompts import SPLITS, ScenePrompt, renderer, scene_prompts
from snapgen.evaluation.statistics import interval_of_mean, wilson
from snapgen.evaluation.verdicts import Verdict, judge
from snapgen.pipeline import SnapGenPipeline

MIN_ACCURACY = 0.98  # of the detector in every category
MIN_RENDERS = 50  # a category that the detector is measured on
MAX_FLOOR = 0.10  # mean score of pictures that show something else
RANDOM_PICTURES = 26  # two for each background

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
    side = settings.size or pipeline.unet.config.sample_size * pipeline.vae.spatial_factor
    truths = scene_prompts("heldout", max(settings.count, MIN_RENDERS), settings.nouns)
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
    kept = [i for i, truth in enumerate(truths) if truth.index < settings.count]
    progress(f"ceiling: {len(kept)} renders through the autoencoder")
    through = [detector(picture) for picture in reconstruct(pipeline, [renders[i] for i in kept])]
    ceiling = shares([truths[i] for i in kept], judged([truths[i] for i in kept], through))

    prompts = [prompt for split in SPLITS for prompt in scene_prompts(split, settings.count, settings.nouns)]
    manifest = make_manifest(pipeline, settings, side, prompts)
    pictures = judge_pictures(pipeline, detector, prompts, settings, folder, manifest, progress)
    report = summarize([picture for picture in pictures if picture.prompt.split == "heldout"]) | {
        "detector": accuracy,
        "detector_renders": len(truths) // len(CATEGORIES),
        "ceiling": {"score": mean(ceiling), "categories": ceiling},
        "floor": floor,
        "train": summarize([picture for picture in pictures if picture.prompt.split == "train"]),
        "manifest": manifest,
    }
    images = [np.asarray(Image.open(folder / picture.file)) for picture in pictures]
    write_report("scenes", report, [picture.to_json() for picture in pictures], images, folder)
    return report


def judge_pictures(
    pipeline: SnapGenPipeline,
    detector: SceneDetector,
    prompts: Sequence[ScenePrompt],
    settings: EvaluationSettings,
    folder: Path,
    manifest: dict[str, Any],
    progress: Progress,
) -> list[JudgedPicture]:
    """Every prompt drawn with every seed, and judged."""
    pairs = [(prompt, seed) for prompt in prompts for seed in settings.seeds]
    requests = [Request(f"{prompt.name}-{seed}", prompt.prompt, seed) for prompt, seed in pairs]
    given = {"num_inference_steps": manifest["steps"], "guidance_scale": manifest["guidance"]}
    sizes = {"width": manifest["side"], "height": manifest["side"]}
    identity = {name: manifest[name] for name in ("model_sha256", "steps", "guidance", "side", "nouns")}
    images = draw_pictures(pipeline, requests, folder / "pictures", identity, given | sizes, progress)
    judged_pictures = []
    for (prompt, seed), request, image in zip(pairs, requests, images, strict=True):
        seen = detector(image)
        verdict = judge(prompt.scene, seen)
        judged_pictures.append(JudgedPicture(prompt, seed, f"pictures/{request.name}.png", seen, verdict))
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


def make_manifest(
    pipeline: SnapGenPipeline, settings: EvaluationSettings, side: int, prompts: Sequence[ScenePrompt]
) -> dict[str, Any]:
    """All that the score depends on."""
    steps, guidance = settings.steps, settings.guidance
    return {
        "suite": "scenes",
        "model_sha256": model_hash(pipeline),
        "prompts_sha256": fingerprint([[prompt.name, prompt.prompt, prompt.scene.to_json()] for prompt in prompts]),
        "font_sha256": font_sha256(),
        "prompts_per_category": settings.count,
        "nouns": "all" if settings.nouns is None else list(settings.nouns),
        "seeds": list(settings.seeds),
        "steps": pipeline.config.default_num_inference_steps if steps is None else steps,
        "guidance": pipeline.config.default_guidance_scale if guidance is None else guidance,
        "side": side,
        "device": str(pipeline.device),
        "versions": library_versions(),
    }


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
def reconstruct(pipeline: SnapGenPipeline, pictures: Sequence[np.ndarray], batch: int = 16) -> list[np.ndarray]:
    """`pictures` (uint8 H W 3) through the pipeline's autoencoder."""
    vae = pipeline.vae
    result: list[np.ndarray] = []
    for start in range(0, len(pictures), batch):
        inputs = to_tensor(list(pictures[start : start + batch])).to(vae.device, vae.dtype)
        result += to_uint8(vae(inputs, return_dict=False)[0])
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
