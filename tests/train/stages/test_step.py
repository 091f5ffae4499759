"""The step stage: its schedules and both sides of Eq. 9 written out, its turns, what it records and refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from support.recipes import RECIPES, metrics_of, paths_below, recipe_of, run_recipe, shares_of

from snapgen.config import RecipeError
from snapgen.flow.schedule import sampling_levels
from snapgen.models.denoiser import feature_widths, load_denoiser
from snapgen.pipeline.text_to_image import SnapGenPipeline
from snapgen.train.loop import only_train
from snapgen.train.optimizer import make_optimizer
from snapgen.train.stage import DISCRIMINATOR, Context
from snapgen.train.stages.step import StepStage
from snapgen.weights import load_file


@pytest.fixture(scope="module")
def paths(folder: Path) -> list[str]:
    """Overrides for recipes below `folder`."""
    teacher, initial = folder / "teacher" / "model", folder / "flow" / "model"
    return [*paths_below(folder), f"teacher={teacher}", f"initial={initial}"]


@pytest.fixture(scope="module")
def trained(paths: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("step") / "run"
    run_recipe("step", run, *paths)
    return run


def make_stage(paths: list[str], run: Path, *overrides: str) -> StepStage:
    recipe = recipe_of(RECIPES / "debug" / "step.yaml", *paths, *overrides)
    torch.manual_seed(0)
    context = Context(torch.device("cpu"), 0, 1, run, lambda items, description, total: items)
    stage = StepStage(recipe, context)
    stage.model.eval()
    return stage


@pytest.mark.slow
def test_the_run_leaves_a_student_of_few_steps(trained: Path) -> None:
    pipeline = SnapGenPipeline.from_pretrained(trained / "model")
    assert type(pipeline.unet).__name__ == "SnapGenUNet"
    assert (pipeline.config.default_num_inference_steps, pipeline.config.default_guidance_scale) == (2, 1.0)
    lines = metrics_of(trained)
    names = {"loss", "task", "output", "adversarial", "grad_norm"}
    names |= {f"discriminator/{name}" for name in ("loss", "real", "fake", "gap", "grad_norm")}
    assert all(names <= line.keys() for line in lines)
    assert lines[-1]["eval/diversity"] > 0
    assert (trained / "plots" / "timesteps.png").exists()


@pytest.mark.slow
def test_a_resumed_run_is_the_one_never_interrupted(paths: list[str], trained: Path, tmp_path: Path) -> None:
    run_recipe("step", tmp_path / "parts", *paths, "train.steps=2")
    run_recipe("step", tmp_path / "parts", *paths, resume=True)
    kept = [line for line in metrics_of(trained) if line["step"] > 2]
    assert [line for line in metrics_of(tmp_path / "parts") if line["step"] > 2] == kept
    for file in ("model", "ema", "optimizer"):
        checkpoint = Path("checkpoints") / "step_00000004" / f"{file}.safetensors"
        here, there = load_file(trained / checkpoint), load_file(tmp_path / "parts" / checkpoint)
        assert here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)


@pytest.mark.slow
def test_two_processes_equal_one(paths: list[str], trained: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--no-python"]
    command = [*launcher, str(Path(sys.executable).with_name("snapgen")), "train"]
    overrides = [word for path in paths for word in ("--set", path)]
    recipe = str(RECIPES / "debug" / "step.yaml")
    subprocess.run(
        [*command, recipe, *overrides, "--out", str(tmp_path / "two")],
        check=True,
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    for here, there in zip(metrics_of(trained), metrics_of(tmp_path / "two"), strict=True):
        # AdamW's first step is the gradient's sign: where that is rounding, it turns, and logits move most.
        assert there == pytest.approx(here, rel=1e-2, abs=5e-3)


def test_every_sample_leaves_a_level_of_a_schedule_for_the_next(paths: list[str], tmp_path: Path) -> None:
    stage = make_stage(paths, tmp_path)
    allowed = {
        (round(a, 5), round(b, 5))
        for steps in (2, 4)
        for levels in [sampling_levels(steps, 3.0)]
        for a, b in pairwise(levels)
    }
    seen = set()
    for step in range(40):
        batch = stage.batch(step)
        pairs = zip(batch["sigmas"].tolist(), batch["next"].tolist(), strict=True)
        seen |= {(round(a, 5), round(b, 5)) for a, b in pairs}
        assert torch.equal(batch["judged"], batch["next"].clamp(min=0.02))
    assert seen == allowed


def test_a_batch_does_not_depend_on_the_number_of_processes(paths: list[str], tmp_path: Path) -> None:
    stage = make_stage(paths, tmp_path)
    whole, shares = stage.batch(3), shares_of(stage, 3)
    for name in ("x0", "noise", "sigmas", "next", "judged", "fake_noise", "real_noise", "perturbation"):
        assert torch.equal(torch.cat([share[name] for share in shares]), whole[name]), name


@pytest.mark.parametrize(("game", "task"), [("hinge", True), ("non-saturating", True), ("hinge", False)])
def test_equation_9_written_out(paths: list[str], tmp_path: Path, game: str, task: bool) -> None:
    stage = make_stage(
        paths,
        tmp_path,
        f"adversary.game={game}",
        "adversary.smoothness=0.5",
        f"distillation.task={str(task).lower()}",
        "distillation.max_ratio=null",
    )
    batch = stage.batch(0)
    x0, noise, t, following = (batch[name] for name in ("x0", "noise", "sigmas", "next"))
    padding = stage.text.max_length - batch["mask"].shape[1]
    states = torch.nn.functional.pad(batch["states"], (0, 0, 0, padding))
    mask = torch.nn.functional.pad(batch["mask"], (0, padding))

    def at(latents: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        level = level[:, None, None, None]
        return (1 - level) * latents + level * noise

    def logits(latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        level = following.clamp(min=0.02)
        features = stage.teacher.network(at(latents, noise, level), 1000 * level, states, mask, taps=(0, 1))[1]
        return stage.model.discriminator(features, 1000 * level)

    def guided(x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        first = torch.zeros_like(mask)
        first[:, 0] = True
        with_text = stage.teacher.network(x, 1000 * level, states, mask).sample
        without = stage.teacher.network(x, 1000 * level, torch.zeros_like(states), first).sample
        return without + 2.0 * (with_text - without)

    found = stage.turn_loss("", stage.model, batch)
    judged = stage.turn_loss(DISCRIMINATOR, stage.model, batch)
    x = at(x0, noise, t)
    v = stage.model.unet(x, 1000 * t, batch["states"], batch["mask"]).sample
    generated = x - t[:, None, None, None] * v
    fake, real = logits(generated, batch["fake_noise"]), logits(x0, batch["real_noise"])
    perturbed = logits(x0 + batch["perturbation"], batch["real_noise"])
    with torch.no_grad():  # two guided Euler steps of the teacher from t to the next level
        half = (t + following) / 2
        width = (half - t)[:, None, None, None]
        middle = x + width * guided(x, t)
        taught = (middle + width * guided(middle, half) - x) / (2 * width)

    def error(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (one.double() - other.double()).square().mean(dim=(1, 2, 3))

    of_task, output = error(v, noise - x0), error(v, taught)
    level = (t.double() / (3 - 2 * t.double())).clamp(1e-9, 1 - 1e-9)  # before the shift of 3
    share = torch.exp(-(torch.logit(level) ** 2) / 2) / (4 * level * (1 - level))
    alike = t[:, None] == t  # the running means of a first batch: over the samples at the same level
    ratio = ((alike * of_task).sum(dim=1) / (alike * output).sum(dim=1)).detach()
    combined = (share * of_task + (1 - share) * ratio * output if task else output).mean()
    if game == "hinge":
        adversarial = -fake.mean()
        versus = (1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean()
    else:
        adversarial = -torch.sigmoid(fake).log().mean()
        versus = -torch.sigmoid(real).log().mean() - (1 - torch.sigmoid(fake)).log().mean()
    expected = combined + 0.1 * adversarial
    assert found["adversarial"].item() == pytest.approx(adversarial.item(), rel=1e-4, abs=1e-6)
    assert found["output"].item() == pytest.approx(output.mean().item(), rel=1e-4)
    assert found["loss"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert ("output_scaled" in found) is task
    weight = stage.model.unet.conv_out[0].weight
    here, there = (torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in (found["loss"], expected))
    torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-6)
    smooth = 0.5 * (real - perturbed).square().mean()
    assert judged["loss"].item() == pytest.approx((versus + smooth).item(), rel=1e-4)
    assert judged["gap"].item() == pytest.approx((real.mean() - fake.mean()).item(), rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_the_heads_have_a_rate_of_their_own(paths: list[str], tmp_path: Path) -> None:
    """AdamW's first step is the rate in every direction, whatever the gradient."""
    common = ("train.steps=1", "train.warmup_steps=0", "train.weight_decay=0", "train.learning_rate=1e-5")
    moved = {}
    for rate in (1, 10):
        run = tmp_path / str(rate)
        before = make_stage(paths, run, *common).model
        run_recipe("step", run, *paths, *common, f"adversary.rate={rate}")
        after = load_file(run / "checkpoints" / "step_00000001" / "model.safetensors")
        for name, weights in before.state_dict().items():
            part = name.split(".")[0]
            moved[part, rate] = max(moved.get((part, rate), 0.0), (after[name] - weights).abs().max().item())
    assert moved["unet", 10] == pytest.approx(moved["unet", 1], rel=0.05)
    assert moved["discriminator", 10] == pytest.approx(10 * moved["discriminator", 1], rel=0.05)


def test_each_turn_moves_its_own_and_the_teacher_stays(paths: list[str], tmp_path: Path) -> None:
    stage = make_stage(paths, tmp_path)
    optimizer = make_optimizer(stage.model, stage.recipe.train)
    batch = stage.batch(0)
    parts = {DISCRIMINATOR: stage.model.discriminator, "": stage.model.unet}
    for turn, moved in parts.items():
        optimizer.zero_grad(set_to_none=True)
        only_train(optimizer, stage.learners(turn))
        stage.turn_loss(turn, stage.model, batch)["loss"].backward()
        for part in parts.values():
            assert all((p.grad is not None) == (part is moved) for p in part.parameters())
    assert all(p.grad is None and not p.requires_grad for p in stage.teacher.network.parameters())


def test_the_adversary_reaches_the_student(paths: list[str], tmp_path: Path) -> None:
    """The adversarial gradient comes through the frozen teacher: it is not zero, and it grows with the weight."""

    def gradient(weight: float) -> torch.Tensor:
        stage = make_stage(paths, tmp_path, f"adversary.weight={weight}")
        stage.turn_loss("", stage.model, stage.batch(0))["loss"].backward()
        return stage.model.unet.conv_in[0].weight.grad

    none, some, more = gradient(0.0), gradient(1.0), gradient(2.0)
    assert (some - none).abs().max() > 0
    torch.testing.assert_close(more - none, 2 * (some - none), rtol=1e-3, atol=1e-6)


def test_without_an_adversary_there_is_one_turn(paths: list[str], tmp_path: Path) -> None:
    stage = make_stage(paths, tmp_path, "adversary.weight=0")
    assert stage.turns == ("",)
    assert make_stage(paths, tmp_path, "adversary.updates=2").turns == (DISCRIMINATOR, DISCRIMINATOR, "")


def test_a_unet_can_teach_itself(folder: Path, paths: list[str], tmp_path: Path) -> None:
    unet = load_denoiser(folder / "flow" / "model" / "unet")
    x, text = torch.randn(2, 16, 4, 4), torch.randn(2, 3, 32)
    taps = tuple(range(len(feature_widths(unet))))
    maps = unet(x, 500.0, text, taps=taps)[1]
    assert [features.shape[1] for features in maps] == feature_widths(unet)
    stage = make_stage(paths, tmp_path, f"teacher={folder / 'flow' / 'model'}", "adversary.taps=[0,2,4]")
    assert stage.turn_loss(DISCRIMINATOR, stage.model, stage.batch(0))["loss"].isfinite()


def test_a_collapse_is_reported(paths: list[str], tmp_path: Path) -> None:
    stage = make_stage(paths, tmp_path)
    warnings: list[str] = []
    stage.context = replace(stage.context, warn=warnings.append)
    assert stage.metrics(stage.model)["diversity"] > 0.5 and warnings == []
    stage.diversity_before *= 100  # now its samples are a hundredth as far apart as they were
    assert stage.metrics(stage.model)["diversity"] < 0.05
    assert len(warnings) == 1 and "collapses" in warnings[0]


def test_refusals_are_one_line(paths: list[str], tmp_path: Path) -> None:
    def refused(message: str, *overrides: Any) -> None:
        with pytest.raises(RecipeError, match=message) as error:
            make_stage(paths, tmp_path, *overrides)
        assert "\n" not in str(error.value)

    refused("adversary.taps: 2 given, the teacher has blocks 0 to 1", "adversary.taps=[0,2]")
    refused("initial: input should be a valid string", "initial=null")
