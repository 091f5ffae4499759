"""The suite "dpg": DPG-Bench (Hu et al. 2024), long prompts checked question by question by a VQA model of our choice.

Protocol. `--prompts` is the benchmark's folder (github.com/TencentQQGYLab/ELLA, dpg_bench): `prompts/ID.txt`, and
`dpg_bench.csv` with each prompt's questions and the questions that these depend on. Each prompt gets four pictures
(seeds 0 to 3, or the four of `--seeds`). Every question is asked of every picture: "yes" is 1, anything else 0. Then,
in the file's order, a question becomes 0 if one that it depends on is 0. A picture's score is the mean over its
questions, a prompt's the mean over its pictures, the benchmark's the mean over its 1,065 prompts; fewer are refused.
Category scores are shares of "yes" before dependencies count, over all four pictures (the official script uses only the
last).

The official judge is modelscope's mPLUG-large. Ours is a VQA model from transformers, BLIP (capfilt-large) unless
`--weights` gives another folder or hub name, so scores are not comparable with official ones. `grids/` holds the 2x2
pictures that the official script scores.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from snapgen.data.captions import decode_caption
from snapgen.data.finding import Skipped, find_files
from snapgen.evaluation import SUITES, EvaluationSettings, required_prompts
from snapgen.evaluation.generation import Request, generate_pictures, make_manifest
from snapgen.evaluation.networks import find_judge, load_judge
from snapgen.evaluation.plots import plot_bars
from snapgen.evaluation.report import score_summary, write_report
from snapgen.evaluation.statistics import interval_of_values
from snapgen.messages import Notify, counted
from snapgen.pictures import read_rgb, save_png
from snapgen.pipeline.text_to_image import SnapGenPipeline
from snapgen.weights import network_hash

VQA = "Salesforce/blip-vqa-capfilt-large"
SAMPLES = 4  # pictures per prompt
PROMPTS = 1065


@dataclass
class Question:
    """One of a prompt's questions."""

    text: str
    category: str  # global, entity, attribute, relation or other
    parents: tuple[int, ...]  # numbers of the questions that it depends on


@dataclass
class DensePrompt:
    """A prompt with its questions by number, in the file's order."""

    name: str
    text: str
    questions: dict[int, Question] = field(default_factory=dict)


def evaluate_dpg(
    pipeline: SnapGenPipeline, settings: EvaluationSettings, folder: Path, progress: Notify
) -> dict[str, Any]:
    """Score `pipeline`, write pictures and report to `folder`, return the report."""
    prompts = read_benchmark(required_prompts("dpg", settings))
    seeds = settings.seeds or tuple(range(SAMPLES))
    if len(seeds) != SAMPLES:
        raise ValueError(f"DPG-Bench takes {SAMPLES} pictures per prompt: give {SAMPLES} --seeds, not {len(seeds)}")
    vqa = QuestionAnswerer(settings.weights or VQA, pipeline.device)
    asked = [[p.name, p.text, [[n, q.text, list(q.parents)] for n, q in p.questions.items()]] for p in prompts]
    manifest = make_manifest("dpg", pipeline, settings, seeds, asked) | {
        "judge": Path(settings.weights or VQA).name,
        "judge_sha256": network_hash({"vqa": vqa.network}),
    }
    pairs = [(prompt, seed) for prompt in prompts for seed in seeds]
    requests = [Request(f"{prompt.name}-{seed}", prompt.text, seed) for prompt, seed in pairs]
    files = generate_pictures(pipeline, requests, folder / "pictures", manifest, progress)
    lines: list[dict[str, Any]] = []
    yes: dict[str, list[float]] = {}
    judged = counted(zip(pairs, files, strict=True), progress, "judging", len(files))
    for index, ((prompt, seed), file) in enumerate(judged):
        picture = read_rgb(file)
        answers = {number: vqa(picture, question.text) for number, question in prompt.questions.items()}
        for number, question in prompt.questions.items():
            yes.setdefault(question.category, []).append(float(answers[number] == "yes"))
        lines.append(
            {
                "file": file.relative_to(folder).as_posix(),
                "prompt": prompt.text,
                "seed": seed,
                "score": score_picture(prompt.questions, answers),
                "answers": {str(number): answer for number, answer in answers.items()},
            }
        )
        if index % SAMPLES == SAMPLES - 1:
            save_grid(files[index + 1 - SAMPLES : index + 1], folder / "grids" / f"{prompt.name}.png")
    scores = [line["score"] for line in lines]
    of_prompts = [sum(scores[i : i + SAMPLES]) / SAMPLES for i in range(0, len(scores), SAMPLES)]
    report = {
        "score": sum(of_prompts) / len(of_prompts),
        "interval": interval_of_values(of_prompts),
        "categories": {category: sum(answers) / len(answers) for category, answers in yes.items()},
        "by_seed": {str(seed): sum(scores[k::SAMPLES]) / len(prompts) for k, seed in enumerate(seeds)},
        "count": len(lines),
        "judge": manifest["judge"],
        "manifest": manifest,
    }
    title = f"dpg: {report['score']:.1%} (our judge)"
    notes = [f"Judged by {manifest['judge']}, not by the official mPLUG-large: not comparable with published scores."]
    figure = plot_bars("yes", {"score": report["score"]} | report["categories"], {"score": report["interval"]})
    write_report(title, report, score_summary(title, report, ".1%", notes), figure, lines, folder)
    return report


def read_benchmark(folder: Path) -> list[DensePrompt]:
    """The prompts in the published files; ValueError unless all are there with their questions."""
    if not (folder / "dpg_bench.csv").is_file() or not (folder / "prompts").is_dir():
        raise ValueError(f"{folder} is not DPG-Bench: --prompts {SUITES['dpg'].needs} is expected")
    skipped = Skipped()
    texts = {file.stem: read_prompt(file) for file in find_files(folder / "prompts", {".txt"}, skipped)}
    skipped.report(folder)
    prompts: dict[str, DensePrompt] = {}
    with (folder / "dpg_bench.csv").open(encoding="utf-8-sig", newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            try:
                if number == 0 and not row["proposition_id"].strip().isdigit():
                    continue  # a second header line, which the official script skips too
                prompt = prompts.setdefault(row["item_id"], DensePrompt(row["item_id"], texts.get(row["item_id"], "")))
                prompt.questions[int(row["proposition_id"])] = Question(
                    row["question_natural_language"],
                    row["tuple"].split("(")[0].split("-")[0].strip(),
                    tuple(parent for part in row["dependency"].split(",") if (parent := int(part))),
                )
            except (KeyError, AttributeError, ValueError) as error:
                raise ValueError(f"{folder / 'dpg_bench.csv'}, row {number + 1}, cannot be read: {error!r}") from None
    if unmatched := sorted(set(texts) ^ set(prompts)):
        raise ValueError(f"{folder}: {len(unmatched)} prompts lack their text or questions, such as {unmatched[0]}")
    if len(prompts) != PROMPTS:
        raise ValueError(f"{folder} holds {len(prompts)} prompts: DPG-Bench has {PROMPTS}, fewer give no score")
    for prompt in prompts.values():
        if lost := {parent for q in prompt.questions.values() for parent in q.parents} - set(prompt.questions):
            raise ValueError(f"{folder}: questions of {prompt.name} depend on {sorted(lost)}, which it does not have")
    return [prompts[name] for name in texts]


def read_prompt(file: Path) -> str:
    """The prompt in a text file; ValueError naming it if it is not UTF-8."""
    try:
        return decode_caption(file.read_bytes())
    except ValueError:
        raise ValueError(f"{file} is not a UTF-8 text file: a prompt of DPG-Bench is expected") from None


def score_picture(questions: Mapping[int, Question], answers: Mapping[int, str]) -> float:
    """The share of questions that score 1: answered "yes", with all parents scoring 1."""
    scores = {number: float(answers[number] == "yes") for number in questions}
    for number, question in questions.items():
        if any(scores[parent] == 0 for parent in question.parents):
            scores[number] = 0.0
    return sum(scores.values()) / len(scores)


def save_grid(files: list[Path], path: Path) -> None:
    """Save four pictures of one size as a 2x2 grid, row by row."""
    pictures = [read_rgb(file) for file in files]
    width, height = pictures[0].size
    grid = Image.new("RGB", (2 * width, 2 * height))
    for index, picture in enumerate(pictures):
        grid.paste(picture, (index % 2 * width, index // 2 * height))
    save_png(grid, path)


class QuestionAnswerer:
    """A VQA model from transformers that writes its answer (BLIP) or picks it from a list (ViLT)."""

    def __init__(self, name: str, device: torch.device):
        from transformers import AutoModelForVisualQuestionAnswering, AutoProcessor

        place = find_judge(name, VQA)
        self.processor, self.network = load_judge(AutoProcessor, AutoModelForVisualQuestionAnswering, place, device)

    @torch.no_grad()
    def __call__(self, picture: Image.Image, question: str) -> str:
        """The answer in lower case."""
        inputs = self.processor(images=picture, text=question, return_tensors="pt").to(self.network.device)
        if self.network.can_generate():
            tokens = self.network.generate(**inputs, max_new_tokens=5, do_sample=False)
            answer = self.processor.decode(tokens[0], skip_special_tokens=True)
        else:
            answer = self.network.config.id2label[int(self.network(**inputs).logits[0].argmax())]
        return str(answer).strip().lower()
