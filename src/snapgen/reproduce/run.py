"""Runs a reproduction, which makes a small model from nothing or from the bundled one: stages, scores, then the report.

It trains with the training loop and scores with the evaluation suites. One folder holds everything:

    plan.json      the request, and what was chosen and done so far
    recipes/       the stages' merged recipes; their paths are relative to the folder, so that it can move
    flow/ ...      a run folder for every stage
    evaluation/    a folder for every model and suite
    report.json, report.md
"""

from __future__ import annotations

import shutil
import signal
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

import torch

from snapgen.config import Recipe
from snapgen.evaluation import EvaluationSettings, load_suite
from snapgen.files import read_json
from snapgen.machine.device import default_device, device_name
from snapgen.messages import Notify
from snapgen.pipeline.load import load_pipeline
from snapgen.pipeline.text_to_image import SnapGenPipeline
from snapgen.reproduce.plan import Cost, Plan, StagePlan, alone, fit_steps, read_plan, stage_recipe, write_plan
from snapgen.reproduce.report import (
    AutoencoderScores,
    ModelScores,
    Report,
    autoencoder_scores,
    make_report,
    model_scores,
    scenes_of,
    write_report,
)
from snapgen.train.loop import train
from snapgen.train.report import read_metrics
from snapgen.train.stages import load_stage
from snapgen.train.state import newest_checkpoint

PROBE = 20  # steps for which a stage is timed, after as many that warm up and fill caches
STUDENTS = {"flow": "base", "distill": "distilled", "step": "few-step"}  # stages to score, and their report names
PROMPTS = (2, 20)  # minimum and maximum per category, unless the plan sets a number
PICTURES = 17  # per model and prompt per category: two splits of six categories, and five for fid
READABLE = 128  # px, the side that the scene benchmark's detector needs


class Reproduction:
    """One folder, from the plan to the report."""

    def __init__(self, folder: Path, progress: Notify):
        """ValueError if `folder` holds no plan; `progress` receives lines for the user."""
        self.folder, self.progress, self.plan = folder, progress, read_plan(folder)

    def run(self) -> Report:
        """Does the remaining work and returns the report. After an interruption, the next call continues."""
        with alone(self.folder), chdir(self.folder):
            self._count_killed()
            for stage in self.plan.stages:  # without the stages that are given
                if stage not in self.plan.finished:
                    try:
                        with self._timed(stage):
                            self._train(stage)
                    except SystemExit as stop:  # SIGTERM ends one training cleanly, but the reproduction is not done
                        raise SystemExit(stop.code or 128 + signal.SIGTERM) from None
                    self._update(finished=(*self.plan.finished, stage))
                shutil.rmtree(Path(stage) / "checkpoints", ignore_errors=True)
            shutil.rmtree("probe", ignore_errors=True)
            with self._timed("evaluation"):
                models, autoencoder = self._score()
            recipes = {stage: self._recipe(stage) for stage in self.plan.stages}
            report = make_report(self.plan, recipes, models, autoencoder)
            write_report(report)
        return report

    # Training

    def _train(self, stage: str) -> None:
        """Trains `stage` to its end, from its newest checkpoint if it has begun."""
        chosen = self.plan.chosen.get(stage)
        if chosen is None or chosen.device != device_name(default_device()):  # not begun, or begun on another machine
            chosen = self._choose_steps(stage)
            self._update(chosen=self.plan.chosen | {stage: chosen})
        self.progress(f"{stage}: {chosen.steps} steps of {chosen.seconds_per_step:.3g} s")
        recipe = self._recipe(stage, **chosen.schedule)
        train(load_stage(recipe.stage), recipe, Path(stage), resume=True)

    def _recipe(self, stage: str, **schedule: int) -> Recipe:
        """The recipe of `stage`, with the steps of `schedule`."""
        return stage_recipe(Path("recipes"), self.plan, stage, **schedule)

    def _choose_steps(self, stage: str) -> StagePlan:
        """Times `stage` on this machine and plans the steps that fit into its share of the time left."""
        began, recipe = time.monotonic(), self._recipe(stage)
        fewest = min(PROBE, recipe.train.steps)
        self.progress(f"{stage}: measuring the rate")
        shutil.rmtree(Path("probe") / stage, ignore_errors=True)
        self._probe(stage, fewest)  # warms up and fills caches, also for later stages: all of them pay
        left = max(0.0, self.plan.seconds_left - (time.monotonic() - began))
        cost = self._measure(stage, recipe.train.batch_size, fewest)
        begun, before = newest_checkpoint(Path(stage), self.progress), self.plan.chosen.get(stage)
        return fit_steps(
            stage,
            recipe,
            cost,
            given=left * self.plan.share(stage),
            fewest=fewest,
            done=0 if begun is None else begun.step,
            warmup_steps=None if before is None else before.warmup_steps,
        )

    def _measure(self, stage: str, batch_size: int, steps: int) -> Cost:
        """Times `stage` over another `steps` steps, as many as its probe has done, and then over none."""
        whole = self._probe(stage, 2 * steps)
        once = self._probe(stage, 2 * steps)  # nothing is left to train
        metrics = read_metrics(Path("probe") / stage / "metrics.jsonl")
        step = batch_size / statistics.median(line["samples_per_second"] for line in metrics[steps:])
        shutil.rmtree(Path("probe") / stage)
        return Cost(step=step, once=once, each=max(0.0, whole - once - steps * step), measuring=whole + once)

    def _probe(self, stage: str, steps: int) -> float:
        """Continues the probe of `stage` up to `steps`; returns the seconds that it took."""
        began = time.monotonic()
        recipe = self._recipe(stage, steps=steps, sample_every=steps, checkpoint_every=steps)
        train(load_stage(recipe.stage), recipe, Path("probe") / stage, resume=True)
        return time.monotonic() - began

    # Scores

    def _score(self) -> tuple[list[ModelScores], AutoencoderScores]:
        """The scores of the students, each with its own number of steps, and of the autoencoder."""
        pipelines = {}
        for stage in STUDENTS:
            if stage in self.plan.stages:
                pipelines[stage] = load_pipeline(str(Path(stage) / "model"))
        count, nouns = self._settle_count(pipelines.values()), scenes_of(self._recipe("flow")).nouns
        models = []
        for stage, pipeline in pipelines.items():
            side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
            few = EvaluationSettings(count, nouns=nouns, size=max(side, READABLE))
            many = EvaluationSettings(5 * count, nouns=nouns, size=max(side, READABLE))
            scenes, fid = self._suite("scenes", pipeline, stage, few), self._suite("fid", pipeline, stage, many)
            models.append(model_scores(STUDENTS[stage], stage, scenes, fid))
        psnr = self._suite("psnr", pipelines["flow"], "autoencoder", EvaluationSettings(5 * count))
        return models, autoencoder_scores(psnr)

    def _settle_count(self, pipelines: Iterable[SnapGenPipeline]) -> int:
        """Prompts per category; if the plan sets none, as many as the time left allows, which the plan then keeps."""
        count = self.plan.count
        if count is None:
            left, (fewest, most) = self.plan.seconds_left, PROMPTS
            seconds = PICTURES * sum(seconds_per_picture(pipeline) for pipeline in pipelines)
            count = max(fewest, min(most, int(left / seconds)))
            self._update(count=count)
        return count

    def _suite(self, name: str, pipeline: SnapGenPipeline, model: str, settings: EvaluationSettings) -> dict[str, Any]:
        """The report of the suite `name` on `model`; it is measured only once."""
        folder = Path("evaluation") / model / name
        if not (folder / "report.json").exists():  # it is written last
            load_suite(name)(pipeline, settings, folder, self.progress)
        return read_json(folder / "report.json")

    # The plan and the time spent

    def _update(self, **changes: object) -> None:
        """Changes fields of the plan, here and on disk."""
        self.plan = Plan.model_validate(dict(self.plan) | changes)
        write_plan(self.plan, Path())

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        """Counts the time as spent on `part`, even if it fails."""
        began = time.monotonic()
        self._update(running=(part, time.time()))
        try:
            yield
        finally:
            self._spend(part, time.monotonic() - began)

    def _spend(self, part: str, seconds: float) -> None:
        self._update(spent=self.plan.spent | {part: self.plan.spent.get(part, 0.0) + seconds}, running=None)

    def _count_killed(self) -> None:
        """Counts the time of a part that was killed, up to the last file that it wrote."""
        if self.plan.running is None:
            return
        part, began = self.plan.running
        files = [file for folder in (part, "probe", "latents") for file in Path(folder).rglob("*") if file.is_file()]
        written = [file.stat().st_mtime for file in files]  # not of folders, whose times unpacking does not keep
        self._spend(part, max(0.0, max(written, default=began) - began))


def seconds_per_picture(pipeline: SnapGenPipeline) -> float:
    """How long `pipeline` takes for one picture after a warm-up, in seconds."""
    pipeline("", generator=torch.Generator().manual_seed(0))
    began = time.monotonic()
    pipeline("", generator=torch.Generator().manual_seed(0))
    return time.monotonic() - began
