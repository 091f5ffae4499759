"""The distill stage: its losses written out, what it records and saves, what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.recipes import RECIPES, metrics_of, paths_below, recipe_of, run_recipe

from snapgen.config import RecipeError
from snapgen.files import sha256
from snapgen.models.teacher import TeacherTransformer
from snapgen.pipeline.text_to_image import SnapGenPipeline
from snapgen.train.stage import Context
from snapgen.train.stages.distill import DistillStage
from snapgen.train.stages.flow import FlowStage
from snapgen.weights import load_file


@pytest.fixture(scope="module")
def paths(folder: Path) -> list[str]:
    """Overrides for recipes below `folder`."""
    return [*paths_below(folder), f"teacher={folder / 'teacher' / 'model'}"]


def make_stage(paths: list[str], run: Path, *overrides: str) -> DistillStage:
    recipe = recipe_of(RECIPES / "debug" / "distill.yaml", *paths, *overrides)
    context = Context(torch.device("cpu"), 0, 1, run, lambda items, description, total: items)
    torch.manual_seed(0)
    return DistillStage(recipe, context)


def test_a_teacher_is_a_pipeline_that_draws(folder: Path, paths: list[str]) -> None:
    pipeline = SnapGenPipeline.from_pretrained(folder / "teacher" / "model")
    assert isinstance(pipeline.unet, TeacherTransformer)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("a cat", generator=[torch.Generator().manual_seed(0)], output_type="pt").images
    assert picture.shape == (1, 3, 32, 32)


@pytest.mark.slow
def test_the_run_leaves_a_student_and_the_curves_of_all_losses(paths: list[str], tmp_path: Path) -> None:
    model = run_recipe("distill", tmp_path / "run", *paths)
    assert {path.name for path in (model / "unet").iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    assert type(SnapGenPipeline.from_pretrained(model).unet).__name__ == "SnapGenUNet"
    lines = metrics_of(tmp_path / "run")
    raw, scaled = {"task", "output", "features"}, {"output_scaled", "features_scaled"}
    assert all({"loss"} | raw | scaled <= line.keys() for line in lines)
    curves = metrics_of(tmp_path / "run", "timesteps.jsonl")[-1]
    assert {"step", "sigma", "loss", "combined"} | raw | scaled == curves.keys()
    assert lines[-1]["eval/heldout/output"] == pytest.approx(sum(curves["output"]) / len(curves["output"]))


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_two_processes_equal_one(paths: list[str], tmp_path: Path, sharded: bool) -> None:
    """Also in their running magnitudes: those of the whole batch."""
    recipe, settings = str(RECIPES / "debug" / "distill.yaml"), [*paths, "train.steps=2"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--no-python"]
    command = [*launcher, str(Path(sys.executable).with_name("snapgen")), "train", recipe]
    command += [word for setting in settings for word in ("--set", setting)]
    environment = {"OMP_NUM_THREADS": "1"}
    if sharded:
        environment |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    subprocess.run(
        [*command, "--out", str(tmp_path / "two")], check=True, capture_output=True, env=os.environ | environment
    )
    run_recipe("distill", tmp_path / "one", *settings)
    for here, there in zip(metrics_of(tmp_path / "one"), metrics_of(tmp_path / "two"), strict=True):
        assert there == pytest.approx(here, rel=1e-2, abs=5e-3)
    checkpoint = Path("checkpoints") / "step_00000002" / "model.safetensors"
    one, two = (load_file(tmp_path / run / checkpoint) for run in ("one", "two"))
    for name in ("scaling.running.means", "scaling.running.visits"):
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-5)
    assert one["scaling.running.visits"].sum() > 0


@pytest.mark.slow
def test_a_resumed_distillation_is_the_one_never_interrupted(paths: list[str], tmp_path: Path) -> None:
    whole = run_recipe("distill", tmp_path / "whole", *paths)
    run_recipe("distill", tmp_path / "parts", *paths, "train.steps=2")
    parts = run_recipe("distill", tmp_path / "parts", *paths, resume=True)
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert sha256(whole / weights) == sha256(parts / weights)


@pytest.mark.parametrize("scaling", ["running t", "running sigma", "sample t", "constant"])
@pytest.mark.parametrize("chosen", [("output", "features"), ("output",), ("features",)])
def test_the_loss_written_out(paths: list[str], tmp_path: Path, scaling: str, chosen: tuple[str, ...]) -> None:
    form, _, share_at = scaling.partition(" ")
    readings = [f"distillation.magnitudes={form}", f"distillation.share_at={share_at}"] if share_at else []
    switches = [f"distillation.{name}={str(name in chosen).lower()}" for name in ("output", "features")]
    weights = {"output": 0.5, "features": 0.25}
    stage = make_stage(
        paths,
        tmp_path,
        f"distillation.scaling={'timestep' if share_at else 'constant'}",
        "distillation.max_ratio=null",
        *readings,
        *switches,
        "distillation.output_weight=0.5",
        "distillation.feature_weight=0.25",
    )
    stage.model.eval()
    batch = stage.batch(0)
    x0, noise, t = batch["x0"], batch["noise"], batch["sigmas"]
    found = stage.loss(stage.model, batch)
    x = x0 + t[:, None, None, None] * (noise - x0)
    v, (f,) = stage.model.unet(x, 1000 * t, batch["states"], batch["mask"], taps=(-1,))
    padding = stage.text.max_length - batch["mask"].shape[1]
    states, mask = F.pad(batch["states"], (0, 0, 0, padding)), F.pad(batch["mask"], (0, padding))
    with torch.no_grad():
        v_teacher, (f_teacher,) = stage.teacher.network(x, 1000 * t, states, mask, taps=(-1,))
    f = stage.model.projector(F.adaptive_avg_pool2d(f, f_teacher.shape[-2:]))

    def error(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (one.double() - other.double()).square().mean(dim=(1, 2, 3))

    task = error(v, noise - x0)
    losses = {"output": error(v, v_teacher), "features": error(f, f_teacher)}
    if form == "constant":
        expected = task + sum(weights[name] * losses[name] for name in chosen)
    else:
        level = t.double() / (3 - 2 * t.double()) if share_at == "t" else t.double()  # before the shift of 3
        share = torch.exp(-(torch.logit(level) ** 2) / 2) / (4 * level * (1 - level))
        same = (16 * level).long()[:, None] == (16 * level).long()  # samples in the same bin
        alike = same.double() if form == "running" else torch.eye(len(level), dtype=torch.float64)
        ratios = {name: (alike @ task / (alike @ losses[name])).detach() for name in chosen}
        expected = sum(share * task + (1 - share) * ratios[name] * losses[name] for name in chosen)
        for name in chosen:
            scaled = (ratios[name] * losses[name]).mean().item()
            assert found[f"{name}_scaled"].item() == pytest.approx(scaled, rel=1e-4)
    assert found["loss"].item() == pytest.approx(expected.mean().item(), rel=1e-4)
    assert found["task"].item() == pytest.approx(task.mean().item(), rel=1e-4)
    assert set(found) == {"loss", "task", *chosen} | {f"{name}_scaled" for name in chosen if form != "constant"}
    weight = stage.model.unet.conv_in[0].weight
    here, there = (torch.autograd.grad(loss, weight)[0] for loss in (found["loss"], expected.mean()))
    torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-6)


def test_the_magnitudes_learn_in_training_only_and_belong_to_the_checkpoint(paths: list[str], tmp_path: Path) -> None:
    stage = make_stage(paths, tmp_path)
    saved = stage.model.state_dict()
    assert saved["scaling.running.visits"].sum() == 0
    stage.loss(stage.model, stage.batch(0))
    means = stage.model.state_dict()["scaling.running.means"].clone()
    assert (means > 0).any()
    stage.timestep_losses(stage.model)
    assert torch.equal(stage.model.state_dict()["scaling.running.means"], means)


def test_the_teacher_sees_what_it_was_trained_with(paths: list[str], tmp_path: Path) -> None:
    """It attends to padding: its text has full length in its own training, under the student's, and in the pipeline."""
    own = FlowStage(
        recipe_of(RECIPES / "debug" / "teacher.yaml", *[path for path in paths if not path.startswith("teacher=")]),
        Context(torch.device("cpu"), 0, 1, tmp_path, lambda items, description, total: items),
    )
    assert own.batch(0)["mask"].shape[1] == own.text.max_length
    stage = make_stage(paths, tmp_path)
    batch = stage.batch(0)
    assert batch["mask"].shape[1] < stage.text.max_length
    with torch.no_grad():
        captions = own.text(["a cat"])
        seen = int(captions.mask.sum())
        short = {"states": captions.states[:, :seen], "mask": captions.mask[:, :seen]}
        x = batch["x0"][:1]
        expected = stage.teacher.network(x, torch.tensor([500.0]), captions.states, captions.mask).sample
        torch.testing.assert_close(stage.teacher(x, torch.tensor([0.5]), short)[0], expected)


def test_only_the_student_and_the_projector_learn(paths: list[str], tmp_path: Path) -> None:
    stage = make_stage(paths, tmp_path)
    stage.loss(stage.model, stage.batch(0))["loss"].backward()
    assert all(p.grad is None for p in stage.teacher.network.parameters())
    assert all(p.grad is not None for p in stage.model.parameters())
    alone = make_stage(paths, tmp_path, "distillation.features=false")
    assert not any(p.requires_grad for p in alone.model.projector.parameters())


def test_a_guided_teacher(paths: list[str], tmp_path: Path) -> None:
    stage = make_stage(paths, tmp_path)
    batch = stage.batch(0)
    x, sigmas = batch["x0"], batch["sigmas"]
    with torch.no_grad():
        without = stage.teacher(x, sigmas, batch | stage.conditions([""] * len(x)))[0]
        v, v_guided = (stage.teacher(x, sigmas, batch, guidance_scale=scale)[0] for scale in (1.0, 3.0))
    torch.testing.assert_close(v_guided, without + 3 * (v - without), rtol=1e-3, atol=1e-4)


def test_refusals_are_one_line(folder: Path, paths: list[str], tmp_path: Path) -> None:
    def refused(message: str, *overrides: Any) -> None:
        with pytest.raises(RecipeError, match=message) as error:
            make_stage(paths, tmp_path, *overrides)
        assert "\n" not in str(error.value)

    refused("model debug-teacher is a TeacherTransformer, expected a SnapGenUNet", "model=debug-teacher")
    refused("neither output nor features", "distillation={output: false, features: false}")
    refused("teacher: folder .*nowhere does not exist", f"teacher={tmp_path / 'nowhere'}")
    other = run_recipe("autoencoder", tmp_path / "autoencoder", "seed=9", "train.steps=1")
    refused("its latents are those of .*teacher.*: both must be trained on one", f"autoencoder={other}")
