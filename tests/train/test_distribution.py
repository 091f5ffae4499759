"""FSDP2, for real: two processes on the CPU that hold a half of every parameter each."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from support.processes import run_two
from support.recipes import RECIPES, recipe_of
from support.sharded import VelocityStage, make_recipe

from snapgen.config import Recipe
from snapgen.files import sha256
from snapgen.models.presets import create_denoiser
from snapgen.models.unet import SnapGenUNet
from snapgen.pipeline.text_to_image import SnapGenPipeline
from snapgen.train.loop import train
from snapgen.train.stage import Stage
from snapgen.train.stages import load_stage
from snapgen.weights import load_file

pytestmark = pytest.mark.slow

RECIPE = make_recipe(spoilt=22)  # of the second process, in the third step


@dataclass(frozen=True)
class Job:
    """One training."""

    run: Path
    recipe: Recipe
    resume: bool = False
    stage: type[Stage[Recipe, torch.nn.Module]] = VelocityStage
    signals: dict[int, int] = field(default_factory=dict)


def launch(*jobs: Job) -> list[int | None]:
    """Two processes train `jobs`, one after another; their exit statuses."""
    return run_two(work, jobs)


def work(jobs: Iterable[Job]) -> None:
    """What one of the processes does, in the environment that `accelerate launch` makes."""
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    VelocityStage.sharded = True
    for job in jobs:
        VelocityStage.signals = job.signals
        train(job.stage, job.recipe, job.run, job.resume)


def metrics_of(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: math.inf if value is None else value for key, value in line.items() if key != "samples_per_second"}
        for line in lines
    ]


def until_step_2(run: Path, copy: Path) -> Path:
    """A copy of `run` with its checkpoint of step 2 as the last."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / "step_00000004")
    return copy


def tensors_of(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of the last checkpoint and of the finished model, by file and name."""
    last = sorted((run / "checkpoints").iterdir())[-1]
    files = {file: last / f"{file}.safetensors" for file in ("model", "ema", "optimizer")}
    files |= {str(path.relative_to(run)): path for path in run.glob("model/**/diffusion_pytorch_model.safetensors")}
    return {name: load_file(path) for name, path in files.items()}


def same_to_tolerance(one: Path, other: Path, tolerance: float = 1e-3) -> None:
    """Asserts equal metrics (they are near 1), weights, average and moments (each tensor relative to its size)."""
    for here, there in zip(metrics_of(one), metrics_of(other), strict=True):
        assert here == pytest.approx(there, rel=tolerance, abs=tolerance)
    theirs = tensors_of(other)
    for file, tensors in tensors_of(one).items():
        assert tensors.keys() == theirs[file].keys()
        for name, tensor in tensors.items():
            assert (tensor - theirs[file][name]).norm() <= tolerance * tensor.norm() + 1e-7, (file, name)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`one`: one process. Sharded: `two`, `killed` and resumed, `from_one`: resumed from a checkpoint of one process.

    `half` and `half_sharded`: in bf16, activations recomputed.
    """
    folder = tmp_path_factory.mktemp("runs")
    half = make_recipe({"precision": "bf16", "activation_checkpointing": True, "steps": 2})
    train(VelocityStage, RECIPE, folder / "one", resume=False)
    train(VelocityStage, half, folder / "half", resume=False)
    from_one = until_step_2(folder / "one", folder / "from_one")
    assert launch(Job(folder / "killed", RECIPE, signals={5: signal.SIGKILL})) == [1, -signal.SIGKILL]  # in step 3
    assert not (folder / "killed" / "model").exists()
    resumed = [Job(folder / "killed", RECIPE, resume=True), Job(from_one, RECIPE, resume=True)]
    assert launch(Job(folder / "two", RECIPE), Job(folder / "half_sharded", half), *resumed) == [0, 0]
    return folder


def test_sharded_equals_one_process(runs: Path) -> None:
    """Clipped and accumulated gradients, the skipped step, weights, average, moments, samples."""
    same_to_tolerance(runs / "one", runs / "two")
    assert [line.get("skipped", 0) for line in metrics_of(runs / "two")] == [0, 0, 1, 1]
    assert all(line["grad_norm"] > RECIPE.train.gradient_clip for line in metrics_of(runs / "two"))
    drawn = (runs / name / "samples" / "step_00000004.png" for name in ("one", "two"))
    assert len({path.stat().st_size for path in drawn}) == 1
    unet = SnapGenUNet.from_pretrained(runs / "two" / "model")
    assert all(torch.isfinite(parameter).all() for parameter in unet.parameters())


def test_killed_and_resumed_equals_uninterrupted(runs: Path) -> None:
    assert metrics_of(runs / "killed") == metrics_of(runs / "two")
    for file in ("model", "ema", "optimizer"):
        path = Path("checkpoints/step_00000004") / f"{file}.safetensors"
        assert sha256(runs / "killed" / path) == sha256(runs / "two" / path), file


def test_resumed_with_and_without_shards(runs: Path, tmp_path: Path) -> None:
    same_to_tolerance(runs / "one", runs / "from_one")
    to_one = until_step_2(runs / "two", tmp_path / "to_one")
    train(VelocityStage, RECIPE, to_one, resume=True)
    same_to_tolerance(runs / "one", to_one)


def test_sharded_in_half_precision(runs: Path) -> None:
    """Blocks are gathered in bf16, sums over samples are taken in another order: equal to bf16's precision."""
    for here, there in zip(metrics_of(runs / "half"), metrics_of(runs / "half_sharded"), strict=True):
        assert here["loss"] == pytest.approx(there["loss"], rel=2e-2)
        assert here["grad_norm"] == pytest.approx(there["grad_norm"], rel=5e-2)


@pytest.fixture(scope="module")
def turns(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of debug/step.yaml and debug/decoder.yaml, each with an adversary. `<name>/one`: one process.

    Sharded: `<name>/two`, and `<name>/parts`, which stops after two steps and is resumed.
    """
    folder = tmp_path_factory.mktemp("turns")
    teacher = SnapGenPipeline.from_pretrained(tiny_model, unet=create_denoiser("debug-teacher"))
    teacher.save_pretrained(folder / "teacher")
    places = {"initial": tiny_model, "text": tiny_model, "teacher": folder / "teacher", "cache": folder / "latents"}
    overrides = {
        "step": [f"autoencoder={tiny_model / 'vae'}", *(f"{key}={place}" for key, place in places.items())],
        "decoder": [f"initial={tiny_model / 'vae'}"],
    }
    jobs = []
    for name, settings in overrides.items():
        path = RECIPES / "debug" / f"{name}.yaml"
        settings = [*settings, "train.gradient_accumulation=2"]
        whole, first = recipe_of(path, *settings), recipe_of(path, *settings, "train.steps=2")
        stage, run = load_stage(whole.stage), folder / name
        train(stage, whole, run / "one", resume=False)
        jobs += [Job(run / "two", whole, stage=stage), Job(run / "parts", first, stage=stage)]
        jobs.append(Job(run / "parts", whole, resume=True, stage=stage))
    assert launch(*jobs) == [0, 0]
    return folder


@pytest.mark.parametrize("name", ["step", "decoder"])
def test_turns_sharded(turns: Path, name: str) -> None:
    """The discriminator's turn, then the generator's: each moves its own shards, resumed or not."""
    # AdamW's first steps are the gradients' signs: where those are rounding, biases of the heads go another way.
    same_to_tolerance(turns / name / "one", turns / name / "two", tolerance=5e-2)
    assert metrics_of(turns / name / "two")[2:] == metrics_of(turns / name / "parts")[2:]
    for file in ("model", "ema", "optimizer"):
        path = Path("checkpoints/step_00000004") / f"{file}.safetensors"
        assert sha256(turns / name / "two" / path) == sha256(turns / name / "parts" / path), file
