"""A small model made from nothing, or from the bundled one: all stages in order, each in its share of a time budget,
then the scores.

It trains by the loop and measures by the suites. Its own are the plan, which says how many steps of a stage fit into
its share, and the export: the files with which another machine goes on. A folder holds it all:

    plan.json      what was asked for, and what was chosen and done so far
    recipes/       the stages' recipes, without bases; paths in them are relative to the folder, so that it can move
    flow/ ...      a run folder for every stage
    evaluation/    a folder for every model and suite
    report.json, report.md
"""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import signal
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from filelock import FileLock, Timeout
from pydantic import Field, ValidationError

from snapgen.config import Recipe, Settings, read_recipe, to_yaml
from snapgen.evaluation import EvaluationSettings, load_suite
from snapgen.files import atomic_folder, manifest, sha256, write_text
from snapgen.machine.device import default_device, device_name, library_versions
from snapgen.messages import between, markdown_table, one_line
from snapgen.pipeline.text_to_image import SnapGenPipeline
from snapgen.train.loop import train
from snapgen.train.report import read_metrics
from snapgen.train.stages import load_recipe, load_stage
from snapgen.train.stages.flow import FlowRecipe
from snapgen.train.state import newest_checkpoint
from snapgen.world.source import SceneSettings

SHARES = {  # of the time, relative to each other, in the order of training
    "autoencoder": 3.0,  # good early, but all that follows is bound by it
    "text": 1.5,  # small, and good early
    "nouns": 0.5,  # what `flow` begins with: things and their colours,
    "layout": 0.8,  # then, at high noise, what stands where
    "flow": 7.0,  # gains for as long as it is trained
    "teacher": 8.0,  # so does this one, at six times the work a step
    "distill": 5.0,  # continues `flow`
    "step": 2.5,  # most of the gain comes in the first few hundred steps
}
EVALUATION = 2.0
OPTIONAL = ("teacher", "distill", "step")
KEPT = ("autoencoder", "text")  # what a model that `flow` continues brings along, or another folder gives
OPENING = ("nouns", "layout")  # each continues the one before, and `flow` the last
CAPPED = (*KEPT, *OPENING)  # good early: they get the steps of their recipes, or as many as there is time for
STUDENTS = {"flow": "base", "distill": "distilled", "step": "few-step"}  # what is scored, and its name in the report
PROBE = 20  # steps that a stage is timed for, after as many that warm up and fill caches
SAMPLINGS = 4  # sample grids and held-out losses of a stage
CHECKPOINT_SECONDS = 60.0  # between checkpoints: the most that a kill costs; more where they would take a larger
CHECKPOINT_SHARE = 0.05  # of the time than this
PROMPTS = (2, 20)  # a category, the fewest and the most, if not asked for
DRAWN = 17  # pictures of a model for each prompt a category: two splits of six categories, and five for fid
LAST = 50  # steps whose mean loss is reported
READABLE = 128  # px a side that the scene benchmark's detector needs
CHOSEN = (  # settings of recipes that the plan and the order of the stages decide
    *(f"train.{name}" for name in ("steps", "warmup_steps", "sample_every", "checkpoint_every")),
    *("autoencoder", "text", "cache", "initial", "teacher"),
)
PART = 16 * 2**20  # bytes, the largest exported file

Progress = Callable[[str], None]


class StagePlan(Settings):
    """How long a stage is trained, and from which measurement that follows."""

    steps: int = Field(gt=0)
    warmup_steps: int = Field(ge=0)
    sample_every: int = Field(gt=0)  # steps
    checkpoint_every: int = Field(gt=0)  # steps
    device: str  # on which the rest was measured
    seconds_per_step: float
    seconds_once: float  # to set up, and to save the model
    seconds_each: float  # to draw, evaluate and write a checkpoint
    seconds_given: float  # of the budget
    late: bool  # there was no time left: it gets the fewest steps


class Plan(Settings):
    """What a reproduction was asked for, and how far it is."""

    name: str  # of the recipes
    minutes: float = Field(gt=0)
    stages: tuple[str, ...]
    initial: str | None = None  # whose UNet `flow` goes on from, on its autoencoder and text encoder
    given: dict[str, str] = {}  # model folders, by stage (of KEPT), that are taken instead of training it
    # Prompts a category of the scenes; fid and psnr take five times as many. None: what the time left allows. If it is
    # set, the scores take the time that they take, beyond the minutes.
    count: int | None = Field(default=None, ge=2)
    overrides: tuple[str, ...] = ()  # "stage.key=value", or "all.key=value" for every stage
    chosen: dict[str, StagePlan] = {}
    finished: tuple[str, ...] = ()
    spent: dict[str, float] = {}  # seconds, by stage and for "evaluation"
    running: tuple[str, float] | None = None  # what was begun and has not ended, and when, in seconds since 1970

    @property
    def command(self) -> str:
        """The call of `snapgen` that plans the same, but for `count`."""
        left_out = [stage for stage in OPTIONAL if stage not in self.stages]
        options = [("--minutes", f"{self.minutes:g}")]
        options += [("--initial", self.initial)] if self.initial is not None else []
        options += [(f"--{stage}", folder) for stage, folder in self.given.items()]
        options += [("--without", ",".join(left_out))] if left_out else []
        options += [("--set", override) for override in self.overrides]
        return shlex.join(["snapgen", "reproduce", self.name, *(word for option in options for word in option)])


def choose_stages(without: Iterable[str], initial: str | None = None, given: Iterable[str] = ()) -> tuple[str, ...]:
    """All stages but those, those `given`, and what `initial` brings along; ValueError for one that others need."""
    left_out = set(without)
    if wrong := sorted(left_out - set(OPTIONAL)):
        raise ValueError(f"--without {wrong[0]}: only {', '.join(OPTIONAL)} can be left out")
    if ("teacher" in left_out) != ("distill" in left_out):
        raise ValueError("--without: teacher and distill are of no use without each other; leave out teacher,distill")
    left_out.update(given)
    if initial is not None:
        left_out.update((*KEPT, *OPENING))
    return tuple(stage for stage in SHARES if stage not in left_out)


def start(folder: Path, recipes: Path, plan: Plan) -> None:
    """Makes `folder` with the plan and its stages' recipes, merged; ValueError if it is there or one is missing."""
    if folder.exists():
        raise ValueError(f"{folder} is there already: continue it with --resume or give another --out")
    for stage in plan.stages:
        if not (recipes / f"{stage}.yaml").is_file():
            raise ValueError(
                f"there is no recipe {recipes / stage}.yaml: run this in a checkout of the repository, or name a "
                "folder of recipes with --recipes"
            )
    for override in plan.overrides:
        stage, _, setting = override.partition(".")
        if stage not in ("all", *plan.stages):
            stages = ", ".join(plan.stages)
            raise ValueError(f"--set {override}: expected STAGE.key=value with a stage of {stages}, or all")
        if setting.partition("=")[0] in CHOSEN:
            raise ValueError(f"--set {override}: reproduce chooses {', '.join(CHOSEN)} by itself")
    for stage in plan.stages:  # a mistake shows before the first stage, not after hours
        stage_recipe(recipes, plan, stage)
    with atomic_folder(folder) as temporary:
        (temporary / "recipes").mkdir()
        for stage in plan.stages:
            name = f"{stage}.yaml"
            write_text(to_yaml(read_recipe(recipes / name).settings), temporary / "recipes" / name)
        write_text(plan.model_dump_json(indent=1), temporary / "plan.json")


def stage_recipe(recipes: Path, plan: Plan, stage: str, **settings: Any) -> Recipe:
    """The recipe of `stage` in `recipes`, on the results of the stages before it; `settings` of its section `train`."""
    student = "distill" if "distill" in plan.stages else "flow"
    paths: dict[str, str] = {}
    if stage not in KEPT:
        kept = {part: f"{part}/model" if plan.initial is None else plan.initial for part in KEPT}
        paths = kept | plan.given
    if stage not in (*KEPT, *OPENING):
        paths["cache"] = "latents"
    if stage == "flow" and plan.initial is not None:
        paths["initial"] = plan.initial
    opening = [other for other in (*OPENING, "flow") if other in plan.stages]
    if stage in opening[1:]:
        paths["initial"] = f"{opening[opening.index(stage) - 1]}/model"
    if stage == "distill":
        paths |= {"initial": "flow/model", "teacher": "teacher/model"}
    if stage == "step":
        paths |= {"initial": f"{student}/model", "teacher": f"{student}/model"}
    own = [override.partition(".")[2] for override in plan.overrides if override.startswith(("all.", f"{stage}."))]
    fixed = [f"{key}={path}" for key, path in paths.items()]
    chosen = [f"train.{key}={value}" for key, value in settings.items()]
    return load_recipe(recipes / f"{stage}.yaml", [*own, *fixed, *chosen])


class Reproduction:
    """One folder, from the plan to the report."""

    def __init__(self, folder: Path, progress: Progress):
        """ValueError if `folder` holds no plan."""
        self.folder, self.progress = folder, progress
        try:
            self.plan = Plan.model_validate_json((folder / "plan.json").read_text())
        except (OSError, ValidationError) as error:
            raise ValueError(f"{folder} holds no reproduction that goes on: {one_line(error)}") from None

    def run(self) -> dict[str, Any]:
        """Does what is still to do and returns the report. An interruption leaves everything for the next call."""
        with self._alone(), chdir(self.folder):
            self._count_killed()
            for stage in self.plan.stages:
                if stage not in self.plan.finished:
                    try:
                        with self._timed(stage):
                            self._train(stage)
                    except SystemExit as stop:  # SIGTERM is a good end of one training, but not of all
                        raise SystemExit(stop.code or 128 + signal.SIGTERM) from None
                    self._update(finished=(*self.plan.finished, stage))
                shutil.rmtree(Path(stage) / "checkpoints", ignore_errors=True)
            shutil.rmtree("probe", ignore_errors=True)
            with self._timed("evaluation"):
                models, autoencoder = self._evaluate()
            report = self._report(models, autoencoder)
            write_text(json.dumps(report, indent=1), Path("report.json"))
            write_text(self._pages(report), Path("report.md"))
        return report

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """ValueError while another process works in the folder."""
        try:
            with FileLock(self.folder.resolve() / ".lock", timeout=0):
                yield
        except Timeout:
            raise ValueError(f"{self.folder} is in use by another snapgen reproduce: wait for it, or stop it") from None

    def _update(self, **changes: Any) -> None:
        self.plan = self.plan.model_copy(update=changes)
        write_text(self.plan.model_dump_json(indent=1), Path("plan.json"))

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        """Counts the time as spent on `part`, however it ends."""
        began = time.monotonic()
        self._update(running=(part, time.time()))
        try:
            yield
        finally:
            self._spend(part, time.monotonic() - began)

    def _spend(self, part: str, seconds: float) -> None:
        self._update(spent=self.plan.spent | {part: self.plan.spent.get(part, 0.0) + seconds}, running=None)

    def _count_killed(self) -> None:
        """Counts the time of a part that was killed too suddenly to do so: up to the last file that it wrote."""
        if self.plan.running is None:
            return
        part, began = self.plan.running
        files = [file for folder in (part, "probe", "latents") for file in Path(folder).rglob("*") if file.is_file()]
        written = [file.stat().st_mtime for file in files]  # of files, as unpacking keeps those, of folders it does not
        self._spend(part, max(0.0, max(written, default=began) - began))

    # Training

    def recipe(self, stage: str, **settings: Any) -> Recipe:
        """The recipe of `stage` on the results of those before it; `settings` of its section `train`."""
        return stage_recipe(Path("recipes"), self.plan, stage, **settings)

    def _train(self, stage: str) -> None:
        chosen = self.plan.chosen.get(stage)
        if chosen is None or chosen.device != device_name(default_device()):  # it goes on elsewhere
            chosen = self._choose(stage)
            self._update(chosen=self.plan.chosen | {stage: chosen})
        self.progress(f"{stage}: {chosen.steps} steps of {chosen.seconds_per_step:.3g} s")
        settings = ("steps", "warmup_steps", "sample_every", "checkpoint_every")
        recipe = self.recipe(stage, **{name: getattr(chosen, name) for name in settings})
        train(load_stage(recipe.stage), recipe, Path(stage), resume=True)

    def _choose(self, stage: str) -> StagePlan:
        """Times `stage` on this machine and gives it the steps that fit into its share of the time left."""
        began = time.monotonic()
        recipe, run = self.recipe(stage), Path("probe") / stage
        count = min(PROBE, recipe.train.steps)
        shutil.rmtree(run, ignore_errors=True)
        self.progress(f"{stage}: measuring the rate")

        def timed(steps: int) -> float:
            started = time.monotonic()
            probe = self.recipe(stage, steps=steps, sample_every=steps, checkpoint_every=steps)
            train(load_stage(recipe.stage), probe, run, resume=True)
            return time.monotonic() - started

        timed(count)  # warms up, and fills the caches of this stage and later ones, which is at the cost of all
        left = max(0.0, self._left() - (time.monotonic() - began))
        waiting = [SHARES[other] for other in self.plan.stages if other not in self.plan.finished]
        scores = EVALUATION if self.plan.count is None else 0.0
        given = left * SHARES[stage] / (sum(waiting) + scores)
        whole, once = timed(2 * count), timed(2 * count)  # the second time there is nothing left to train
        rates = [line["samples_per_second"] for line in read_metrics(run / "metrics.jsonl")[count:]]
        pace = recipe.train.batch_size / statistics.median(rates)
        each = max(0.0, whole - once - count * pace)
        shutil.rmtree(run)
        interval = max(CHECKPOINT_SECONDS, each / CHECKPOINT_SHARE)
        free = given - whole - 2 * once - SAMPLINGS * each
        fitting = int(free / (pace * (1 + each / interval)))
        begun, before = newest_checkpoint(Path(stage), self.progress), self.plan.chosen.get(stage)
        done = 0 if begun is None else begun.step
        steps = done + max(count, fitting)
        if stage in CAPPED:
            steps = max(done, min(steps, recipe.train.steps))
        return StagePlan(
            steps=steps,
            # A run that has begun keeps its warm-up.
            warmup_steps=min(recipe.train.warmup_steps, steps // 10) if before is None else before.warmup_steps,
            sample_every=math.ceil(steps / SAMPLINGS),
            checkpoint_every=max(1, min(steps, int(interval / pace))),
            device=device_name(default_device()),
            seconds_per_step=pace,
            seconds_once=once,
            seconds_each=each,
            seconds_given=given,
            late=fitting < count,
        )

    def _left(self) -> float:
        """Seconds of the budget, but for what the running part has taken so far."""
        return max(0.0, 60 * self.plan.minutes - sum(self.plan.spent.values()))

    # Scores

    def _evaluate(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The students' scores at their own numbers of steps, and the autoencoder's."""
        models: list[dict[str, Any]] = []
        pipelines = {
            stage: SnapGenPipeline.from_pretrained(Path(stage) / "model").to(default_device())
            for stage in STUDENTS
            if stage in self.plan.stages
        }
        for pipeline in pipelines.values():
            pipeline.set_progress_bar_config(disable=True)
        count = self._count(pipelines.values())
        for stage, pipeline in pipelines.items():
            side = pipeline.unet.config.sample_size * pipeline.vae.spatial_factor
            asked = {"nouns": self._world().nouns, "size": max(side, READABLE)}
            scenes = self._suite("scenes", pipeline, stage, count=count, **asked)
            fid = self._suite("fid", pipeline, stage, count=5 * count, **asked)
            if stage == "flow":
                autoencoder = self._suite("psnr", pipeline, "autoencoder", count=5 * count)
            models.append(
                {"name": STUDENTS[stage], "stage": stage}
                | {key: scenes["manifest"][key] for key in ("model_sha256", "steps", "guidance")}
                | {key: scenes[key] for key in ("score", "interval", "categories", "count")}
                | {"ceiling": scenes["ceiling"]["score"], "second_judge": scenes["classifier"]["score"]}
                | {"distance": fid["score"], "truth": fid["truth"]}
            )
        return models, {key: autoencoder[key] for key in ("psnr", "ssim", "count")}

    def _count(self, pipelines: Iterable[SnapGenPipeline]) -> int:
        """How many prompts a category are drawn: if not asked for, as many as the time left allows, then settled."""
        if self.plan.count is None:
            left, seconds = self._left(), 0.0
            for pipeline in pipelines:
                for _ in range(2):  # the first warms up
                    started = time.monotonic()
                    pipeline("", generator=torch.Generator().manual_seed(0))
                    taken = time.monotonic() - started
                seconds += taken
            fewest, most = PROMPTS
            self._update(count=max(fewest, min(most, int(left / (DRAWN * seconds)))))
        return cast(int, self.plan.count)

    def _world(self) -> SceneSettings:
        """The scenes that the students learn and are scored on."""
        return cast(SceneSettings, cast(FlowRecipe, self.recipe("flow")).data)

    def _suite(self, name: str, subject: Any, model: str, **settings: Any) -> dict[str, Any]:
        folder = Path("evaluation") / model / name
        if not (folder / "report.json").exists():  # it is written last
            load_suite(name)(subject, EvaluationSettings(**settings), folder, self.progress)
        report: dict[str, Any] = json.loads((folder / "report.json").read_text())
        return report

    def _report(self, models: list[dict[str, Any]], autoencoder: dict[str, Any]) -> dict[str, Any]:
        stages = []
        for stage in self.plan.stages:
            lines, batch = read_metrics(Path(stage) / "metrics.jsonl"), self.recipe(stage).train.batch_size
            chosen = self.plan.chosen[stage]
            stages.append(
                {"stage": stage, "steps": chosen.steps, "batch_size": batch, "samples": chosen.steps * batch}
                | {"seconds": round(self.plan.spent[stage], 1)}
                | {"loss": statistics.fmean(line["loss"] for line in lines[-LAST:] if math.isfinite(line["loss"]))}
                | {"heldout": lines[-1].get("eval/heldout"), "late": chosen.late}
            )
        devices = [*(self.plan.chosen[stage].device for stage in self.plan.stages), device_name(default_device())]
        return {
            "name": self.plan.name,
            "command": self.plan.command,
            "initial": self.plan.initial,
            "minutes": {"given": self.plan.minutes, "spent": round(sum(self.plan.spent.values()) / 60, 2)},
            "device": ", then ".join(dict.fromkeys(devices)),
            "versions": library_versions(),
            "models": models,
            "autoencoder": autoencoder,
            "data": self._world().model_dump(mode="json"),
            "stages": stages,
        }

    def _pages(self, report: dict[str, Any]) -> str:
        """The report as Markdown: the tables, then curves and sheets of every stage."""
        lines = [f"# {report['name']}, made from {report['initial'] or 'nothing'}", "", *card(report)]
        for stage in self.plan.stages:
            pictures = [*sorted(Path(stage, "plots").glob("*.png")), *sorted(Path(stage, "samples").glob("*.png"))[-1:]]
            lines += ["", f"## {stage}", "", *(f"![{picture.stem}]({picture.as_posix()})" for picture in pictures)]
        for model in report["models"]:
            sheet = f"evaluation/{model['stage']}/scenes/sheet.png"
            lines += ["", f"## {model['name']}, on the scene benchmark", "", f"![sheet]({sheet})"]
        return "\n".join(lines)

    # Moving to another machine

    def needed(self) -> list[Path]:
        """The files with which the folder goes on elsewhere, relative to it, sorted."""
        patterns = ["plan.json", "report.*", "recipes/*", "evaluation/*/*/report.*", "evaluation/*/*/*.png"]
        for stage in self.plan.stages:
            patterns += [f"{stage}/{name}" for name in ("*.yaml", "*.jsonl", "plots/*", "samples/*")]
            if stage not in self.plan.finished:
                checkpoint = newest_checkpoint(self.folder / stage, self.progress)
                patterns += [] if checkpoint is None else [f"{stage}/checkpoints/{checkpoint.folder.name}/*"]
            elif stage != "teacher" or "distill" not in self.plan.finished:  # nothing else reads the teacher
                patterns.append(f"{stage}/model/**/*")
        found = {path for pattern in patterns for path in self.folder.glob(pattern) if path.is_file()}
        return sorted(path.relative_to(self.folder) for path in found)

    def export(self, target: Path) -> list[Path]:
        """Packs what is needed into `target`: a tar in parts of at most `PART` bytes, and their SHA-256."""
        if target.exists():
            raise ValueError(f"--export {target} is there already: name a new folder")
        with (
            self._alone(),
            atomic_folder(target) as folder,
            tempfile.TemporaryFile(dir=target.parent) as whole,  # the usual place may be small
        ):
            with tarfile.open(fileobj=whole, mode="w") as tar:
                first: dict[str, Path] = {}  # of files with the same content: models repeat their autoencoder
                for path in self.needed():
                    entry = tar.gettarinfo(self.folder / path, path.as_posix())
                    same = first.setdefault(sha256(self.folder / path), path)
                    if same != path:
                        entry.type, entry.linkname, entry.size = tarfile.LNKTYPE, same.as_posix(), 0
                    with (self.folder / path).open("rb") as file:
                        tar.addfile(entry, file if same == path else None)
            whole.seek(0)
            for number, part in enumerate(iter(lambda: whole.read(PART), b"")):
                (folder / f"state.tar.{number:04}").write_bytes(part)
            write_text(json.dumps({"files": manifest(folder)}, indent=1), folder / "manifest.json")
        return sorted(target.iterdir())


def unpack(source: Path, folder: Path) -> None:
    """Makes `folder` of what `Reproduction.export` wrote to `source`; ValueError if a part is missing or damaged."""
    if folder.exists():
        raise ValueError(f"{folder} is there already: give another --out")
    try:
        expected = json.loads((source / "manifest.json").read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--import {source}: manifest.json is missing or damaged: {error!r}") from None
    found = manifest(source)
    for name, digest in sorted(expected.items()):
        if found.get(name) != digest:
            raise ValueError(f"--import {source}: {name} is {'damaged' if name in found else 'missing'}; copy it again")
    with atomic_folder(folder) as temporary, tempfile.TemporaryFile() as whole:
        for name in sorted(expected):
            with (source / name).open("rb") as part:
                shutil.copyfileobj(part, whole)
        whole.seek(0)
        with tarfile.open(fileobj=whole) as tar:
            _extract(tar, temporary)


def _extract(tar: tarfile.TarFile, folder: Path) -> None:
    """Files into `folder` and nowhere else; `extractall` knows how to only since Python 3.11.4."""
    for member in tar:
        path = Path(member.name)
        content = tar.extractfile(member) if member.isreg() or member.islnk() else None
        if content is None or path.is_absolute() or ".." in path.parts:
            raise ValueError(f"--import: {member.name} is not a file inside the exported folder")
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with content, target.open("wb") as file:
            shutil.copyfileobj(content, file)
        os.utime(target, (member.mtime, member.mtime))


def card(report: dict[str, Any]) -> list[str]:
    """What a model card says of the models of a report: data, recipe, scores, limits; lines of Markdown."""
    data, last = report["data"], report["models"][-1]
    start = "" if report["initial"] is None else f", going on from {report['initial']}"
    things = ", ".join(data["nouns"]) if data["nouns"] else "all things of the vocabulary"
    right, wrong = (
        ", ".join(name for name, score in last["categories"].items() if (score < 0.5) == below) or "nothing"
        for below in (False, True)
    )
    return [
        f"Trained on {data['count']:,} composed scenes{start}, and scored, by",
        "",
        "```sh",
        report["command"],
        "```",
        "",
        f"The things that it knows, in English: {things}.",
        "",
        *tables(report),
        "",
        f"Of the categories, the last model gets right more often than not: {right}. More often wrong: {wrong}.",
    ]


def tables(report: dict[str, Any]) -> list[str]:
    """Scores and stages of a report as Markdown."""
    categories = list(report["models"][0]["categories"])
    scores = [
        (
            model["name"],
            f"{model['steps']}" + (", guided" if model["guidance"] != 1 else ""),
            f"{model['score']:.1%}",
            between(model["interval"], ".1%"),
            *(f"{model['categories'][name]:.0%}" for name in categories),
            f"{model['second_judge']:.1%}",
            f"{model['distance']:.4g}",
        )
        for model in report["models"]
    ]
    stages = [
        (
            stage["stage"],
            f"{stage['steps']:,}",
            f"{stage['samples']:,}",
            f"{stage['seconds'] / 60:.1f}",
            *("" if stage[key] is None else f"{stage[key]:.4g}" for key in ("loss", "heldout")),
        )
        for stage in report["stages"]
    ]
    header = ("model", "steps", "scene score", "95 % interval", *categories, "second judge", "Frechet distance")
    best, autoencoder = report["models"][0], report["autoencoder"]
    late = [stage["stage"] for stage in report["stages"] if stage["late"]]
    return [
        *markdown_table(header, scores),
        "",
        f"{best['count']} held-out pictures each. The score asks for the true outline and texture; the second judge, "
        "a small classifier, looks at the whole picture. Ground truth through the autoencoder scores "
        f"{best['ceiling']:.1%}, true renders have a distance of {best['truth']:.4g}; the autoencoder gives pictures "
        f"back at {autoencoder['psnr']:.2f} dB PSNR, {autoencoder['ssim']:.4f} SSIM.",
        "",
        *markdown_table(("stage", "steps", "samples", "minutes", "loss", "held-out loss"), stages),
        "",
        f"{report['minutes']['spent']:.1f} minutes of {report['minutes']['given']:g} given, on {report['device']}.",
        *([f"No time was left for {', '.join(late)}: the fewest steps were trained."] if late else []),
    ]
