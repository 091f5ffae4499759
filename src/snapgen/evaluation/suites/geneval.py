"""The suite "geneval": GenEval (Ghosh et al. 2023) by its rules, with pictures in the layout of the official scorer.

Protocol. `--prompts` is the benchmark's `prompts/evaluation_metadata.jsonl` (github.com/djghosh13/geneval); a hash
checks its 553 prompts. Each prompt gets four pictures (seeds 0 to 3, or the four of `--seeds`). Mask2Former (Swin-S,
COCO instances) finds objects with scores above 0.3 (counting: 0.9), at most 16 per class. CLIP ViT-L/14 names their
colours, on crops with a #999 background. geneval_rules.py gives the verdicts (relations: centres apart by more than 0.1
of the summed sides). The score is the mean of the six tasks' shares of right pictures.

The scorer is ours: Mask2Former and CLIP from transformers instead of mmdet and open_clip, which no longer install for
most people. Its detector makes masks of 384 px, so scores may differ a little from the official ones: say so when you
report them. `pictures/` has the official layout (`00000/metadata.jsonl`, `00000/samples/0000.png`), and the official
scripts can score it as is.

`--weights` is a folder with `detector/` and `clip/`, as `save_pretrained` or `hf download` make them; without it, the
hub's facebook/mask2former-swin-small-coco-instance and openai/clip-vit-large-patch14 are used.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from snapgen.evaluation import EvaluationSettings, required_prompts
from snapgen.evaluation.generation import Request, generate_pictures, make_manifest
from snapgen.evaluation.geneval_rules import THRESHOLD, Found, confident, judge
from snapgen.evaluation.networks import CLIP, Clip, find_judge, load_judge
from snapgen.evaluation.plots import plot_bars
from snapgen.evaluation.report import score_summary, write_report
from snapgen.evaluation.statistics import effective_tally, interval_of_mean, wilson
from snapgen.files import fingerprint, parse_json, read_lines, write_text
from snapgen.messages import Notify, counted
from snapgen.pictures import read_rgb
from snapgen.pipeline.text_to_image import SnapGenPipeline
from snapgen.weights import network_hash

DETECTOR = "facebook/mask2former-swin-small-coco-instance"
SAMPLES = 4  # pictures per prompt
PROMPTS = 553
# Hash of the lines as JSON with sorted keys, as the benchmark's create_prompts.py writes them with its seed 43.
PROMPTS_SHA256 = "c8fa1d631e48e8aed7e8650bdcd7551da0ab18e4266678da968badfd0d31f2af"
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")
BLANK = (0x99, 0x99, 0x99)  # the colour of a crop outside the object
# GenEval's names in COCO's order, the order of the detector's labels.
# fmt: off
CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis",
    "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed",
    "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear",
    "hair drier", "toothbrush",
)
# fmt: on
ANCHORS = ("person", "car", "bus", "cat", "zebra", "pizza", "toothbrush")  # labels on which all COCO lists agree


def evaluate_geneval(
    pipeline: SnapGenPipeline, settings: EvaluationSettings, folder: Path, progress: Notify
) -> dict[str, Any]:
    """Score `pipeline`, write pictures and report to `folder`, return the report."""
    prompts = read_metadata(required_prompts("geneval", settings))
    seeds = settings.seeds or tuple(range(SAMPLES))
    if len(seeds) != SAMPLES:
        raise ValueError(f"GenEval takes {SAMPLES} pictures per prompt: give {SAMPLES} --seeds, not {len(seeds)}")
    detector_name, clip_name = weights_of(settings.weights)
    detect = Detector(detector_name, pipeline.device)
    colors = ColorClassifier(clip_name, pipeline.device)
    manifest = make_manifest("geneval", pipeline, settings, seeds, prompts) | {
        "scorer": "snapgen: transformers' Mask2Former and CLIP",
        "detector_sha256": network_hash({"detector": detect.network}),
        "clip_sha256": network_hash({"clip": colors.clip.network}),
    }
    pairs = [(i, metadata, k) for i, metadata in enumerate(prompts) for k in range(SAMPLES)]
    requests = [Request(f"{i:05d}/samples/{k:04d}", metadata["prompt"], seeds[k]) for i, metadata, k in pairs]
    files = generate_pictures(pipeline, requests, folder / "pictures", manifest, progress)
    for i, metadata in enumerate(prompts):
        write_text(json.dumps(metadata), folder / "pictures" / f"{i:05d}" / "metadata.jsonl")
    lines: list[dict[str, Any]] = []
    for (_, metadata, k), file in counted(zip(pairs, files, strict=True), progress, "judging", len(files)):
        picture = read_rgb(file)
        found = confident(detect(picture), metadata["tag"])
        verdict = judge(metadata, found, lambda one: colors(picture, one))  # noqa: B023
        lines.append(
            {
                "file": file.relative_to(folder).as_posix(),
                "category": metadata["tag"],
                "prompt": metadata["prompt"],
                "seed": seeds[k],
                "verdict": asdict(verdict),
                "found": {name: [[*one.box, round(one.score, 4)] for one in ones] for name, ones in found.items()},
            }
        )
    report = summarize(lines) | {"scorer": manifest["scorer"], "manifest": manifest}
    title = f"geneval: {report['score']:.1%} (our scorer)"
    notes = ["Mask2Former and CLIP of transformers under GenEval's rules, not the official detector."]
    notes.append("The official scripts score `pictures/` as it is.")
    figure = plot_bars("right pictures", report["categories"], report["category_intervals"])
    write_report(title, report, score_summary(title, report, ".1%", notes), figure, lines, folder)
    return report


def read_metadata(path: Path) -> list[dict[str, Any]]:
    """The benchmark's prompts; ValueError unless the file holds exactly these."""
    try:
        prompts = [parse_json(line) for line in read_lines(path)]
    except ValueError:
        raise ValueError(f"{path} is no file of JSON lines: GenEval's evaluation_metadata.jsonl is expected") from None
    if len(prompts) != PROMPTS:
        raise ValueError(f"{path} holds {len(prompts)} prompts: GenEval has {PROMPTS}, fewer give no score")
    if fingerprint(prompts) != PROMPTS_SHA256:
        raise ValueError(f"{path} holds {PROMPTS} prompts, but not GenEval's: some were changed or moved")
    return prompts


def weights_of(folder: str | None) -> tuple[str | Path, str | Path]:
    """Names or folders of the detector and CLIP."""
    return (DETECTOR, CLIP) if folder is None else (Path(folder) / "detector", Path(folder) / "clip")


def summarize(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The score, the tasks' scores and their intervals."""

    def tallies(chosen: Sequence[dict[str, Any]]) -> dict[str, tuple[float, float]]:
        rights: dict[str, dict[str, list[bool]]] = {}
        for line in chosen:
            of_task = rights.setdefault(line["category"], {})
            of_task.setdefault(line["prompt"], []).append(line["verdict"]["correct"])
        return {task: effective_tally(of_prompts.values()) for task, of_prompts in rights.items()}

    def mean(tally: dict[str, tuple[float, float]]) -> float:
        return sum(right / count for right, count in tally.values()) / len(tally)

    tasks = tallies(lines)
    seeds = dict.fromkeys(line["seed"] for line in lines)
    return {
        "score": mean(tasks),
        "interval": interval_of_mean(list(tasks.values())),
        "categories": {task: right / count for task, (right, count) in tasks.items()},
        "category_intervals": {task: wilson(*tally) for task, tally in tasks.items()},
        "by_seed": {str(seed): mean(tallies([line for line in lines if line["seed"] == seed])) for seed in seeds},
        "count": len(lines),
    }


class Detector:
    """Mask2Former as GenEval uses it: it finds instances of COCO's 80 classes."""

    def __init__(self, name: str | Path, device: torch.device):
        """Raises ValueError unless the labels are COCO's, in order: others would give wrong scores silently."""
        from transformers import Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessorPil

        place, kind = find_judge(name, DETECTOR, "FOLDER/detector"), Mask2FormerForUniversalSegmentation
        self.processor, self.network = load_judge(Mask2FormerImageProcessorPil, kind, place, device)
        labels = self.network.config.id2label
        if len(labels) != len(CLASSES) or any(labels[CLASSES.index(anchor)] != anchor for anchor in ANCHORS):
            raise ValueError(f"the detector '{name}' does not name COCO's 80 classes in their order")

    @torch.no_grad()
    def __call__(self, picture: Image.Image) -> list[Found]:
        """All detections above the lower threshold."""
        inputs = self.processor(images=picture, return_tensors="pt").to(self.network.device)
        result = self.processor.post_process_instance_segmentation(
            self.network(**inputs),
            threshold=THRESHOLD,
            target_sizes=[(picture.height, picture.width)],
            return_binary_maps=True,
        )[0]
        if not result["segments_info"]:
            return []
        masks = np.asarray(result["segmentation"].cpu()) > 0
        return [
            Found(CLASSES[segment["label_id"]], None, box_of(mask), float(segment["score"]), mask)
            for mask, segment in zip(masks, result["segments_info"], strict=True)
            if mask.any()
        ]


def box_of(mask: np.ndarray) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a non-empty bool mask H W, px; right and bottom exclusive."""
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


class ColorClassifier:
    """Names the colour of an object, one of GenEval's ten, with CLIP."""

    def __init__(self, name: str | Path, device: torch.device):
        self.clip = Clip(name, device, "FOLDER/clip")
        self._classifier = cache(self._make)

    def __call__(self, picture: Image.Image, one: Found) -> str:
        cut = Image.composite(picture, Image.new("RGB", picture.size, BLANK), Image.fromarray(one.mask))
        left, top, right, bottom = one.box
        seen = self.clip.picture(cut.crop((int(left), int(top), int(right), int(bottom))))
        return COLORS[int((self._classifier(one.name) @ seen).argmax())]

    def _make(self, name: str) -> torch.Tensor:
        """For each colour, the mean of the templates' embeddings, normalised to unit length: 10 D."""
        texts = [template.format(color=color, name=name) for color in COLORS for template in TEMPLATES]
        return F.normalize(self.clip.texts(texts).unflatten(0, (len(COLORS), -1)).mean(dim=1), dim=-1)
