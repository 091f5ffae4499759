"""`snapgen reproduce` at the debug size: stage by stage, interrupted, moved to another folder, and continued."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from support.recipes import RECIPES

from snapgen.cli.main import run
from snapgen.evaluation.suites import scenes
from snapgen.files import manifest
from snapgen.pipeline.text_to_image import SnapGenPipeline
from snapgen.reproduce.plan import Plan, StagePlan, choose_stages, start
from snapgen.reproduce.run import Reproduction
from snapgen.train.loop import train
from snapgen.train.report import read_metrics
from snapgen.train.stages import load_stage
from snapgen.train.stages.autoencoder import AutoencoderStage
from snapgen.train.stages.step import StepStage

DEBUG = RECIPES / "debug"


@pytest.fixture
def few_renders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "MIN_RENDERS", 2)


@pytest.mark.slow
def test_the_steps_fit_into_the_share(tmp_path: Path) -> None:
    """The autoencoder's share of a hundred hours, at the rate that was measured."""
    start(tmp_path / "run", DEBUG, Plan(name="debug", minutes=6000.0, stages=choose_stages(("teacher", "distill"))))
    recipe = tmp_path / "run" / "recipes" / "autoencoder.yaml"
    recipe.write_text(recipe.read_text().replace("steps: 4", "steps: 1000000000"))
    reproduction = Reproduction(tmp_path / "run", print)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path / "run")
        chosen = reproduction._choose_steps("autoencoder")
    assert chosen.seconds_given == pytest.approx(
        360_000 * 3 / (3 + 1.5 + 0.5 + 0.8 + 7 + 2.5 + 2), rel=1e-3
    )  # but for the warm-up
    checkpoints = chosen.steps / chosen.checkpoint_every
    spent = chosen.steps * chosen.seconds_per_step + chosen.seconds_once + (4 + checkpoints) * chosen.seconds_each
    assert 0.9 * chosen.seconds_given < spent <= chosen.seconds_given and not chosen.late
    assert 0 < chosen.seconds_once < 60 and 0 < chosen.seconds_each < 60
    assert chosen.sample_every * 4 >= chosen.steps > chosen.sample_every * 3
    # A checkpoint a minute, or as many as take a twentieth of the time.
    assert chosen.checkpoint_every * chosen.seconds_per_step <= max(60, 20 * chosen.seconds_each)


@pytest.mark.slow
def test_a_stage_that_is_good_early_gets_no_more_steps_than_its_recipe_says(tmp_path: Path) -> None:
    start(tmp_path / "run", DEBUG, Plan(name="debug", minutes=6000.0, stages=choose_stages(("teacher", "distill"))))
    reproduction = Reproduction(tmp_path / "run", print)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path / "run")
        chosen = reproduction._choose_steps("autoencoder")
        train(
            load_stage("autoencoder"), reproduction._recipe("autoencoder", steps=3), Path("autoencoder"), resume=False
        )
        continued = reproduction._choose_steps("autoencoder")
    assert chosen.steps == continued.steps == 4 and not chosen.late


@pytest.mark.slow
def test_a_stage_that_began_elsewhere_is_timed_anew(tmp_path: Path) -> None:
    """Its steps are those that this machine can do, beyond those that are done; its warm-up stays."""
    start(tmp_path / "run", DEBUG, Plan(name="debug", minutes=6000.0, stages=choose_stages(("teacher", "distill"))))
    reproduction = Reproduction(tmp_path / "run", print)
    there = {"steps": 3, "warmup_steps": 1, "sample_every": 3, "checkpoint_every": 2, "late": False}
    there |= {f"seconds_{name}": 1.0 for name in ("per_step", "once", "each", "given")}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path / "run")
        begun = reproduction._recipe("autoencoder", steps=2, warmup_steps=1)
        train(load_stage("autoencoder"), begun, Path("autoencoder"), resume=False)
        chosen = {"autoencoder": StagePlan(device="another", **there)}
        reproduction._update(chosen=chosen, spent={"text": 360_000.0})  # no time is left
        patch.setattr("snapgen.reproduce.run.PROBE", 1)
        reproduction._train("autoencoder")
        trained = read_metrics(Path("autoencoder/metrics.jsonl"))
    chosen = reproduction.plan.chosen["autoencoder"]
    assert (chosen.steps, chosen.warmup_steps, chosen.late) == (3, 1, True) and chosen.device != "another"
    assert [line["step"] for line in trained] == [1, 2, 3]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_stopped_is_no_success(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """Also while the rate is measured: whoever waits for a report must not take an old one."""
    start(tmp_path / "run", DEBUG, Plan(name="debug", minutes=1.0, stages=choose_stages(())))
    batch = AutoencoderStage.batch

    def stopped(stage: AutoencoderStage, step: int) -> Any:
        signal.raise_signal(number)
        return batch(stage, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutoencoderStage, "batch", stopped)
        with pytest.raises(SystemExit) as stop:
            Reproduction(tmp_path / "run", print).run()
    assert stop.value.code == code and not (tmp_path / "run" / "report.json").exists()


@pytest.mark.slow
def test_it_continues_the_bundled_model(
    tmp_path: Path, tiny_model: Path, few_renders: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's autoencoder and text encoder stay, its UNet learns: first as it is, then after some steps."""
    monkeypatch.setattr("snapgen.train.places.bundled_folder", lambda: tiny_model)
    options = ["reproduce", "debug", "--recipes", str(DEBUG), "--initial", "mini-base", "--minutes", "0.01"]
    out = tmp_path / "run"
    assert run([*options, "--count", "2", "--without", "teacher,distill", "--out", str(out)]) == 0
    assert Reproduction(out, print).plan.stages == ("flow", "step")
    before, base, few = (
        SnapGenPipeline.from_pretrained(folder)
        for folder in (tiny_model, out / "flow" / "model", out / "step" / "model")
    )
    for name in ("vae", "text_encoder"):
        expected = getattr(before, name).state_dict()
        for after in (base, few):
            assert all(torch.equal(value, expected[key]) for key, value in getattr(after, name).state_dict().items())
    initial, learned = (pipeline.unet.state_dict() for pipeline in (before, base))
    changes = [(learned[key] - value).norm() / value.norm() for key, value in initial.items() if value.norm() > 0]
    assert 0 < max(changes) < 0.5  # from nothing it would be 1.4
    page = (out / "report.md").read_text()
    assert "# debug, made from mini-base" in page and "continuing from mini-base" in page


def test_a_field_that_the_plan_does_not_have_is_refused(tmp_path: Path) -> None:
    start(tmp_path / "run", DEBUG, Plan(name="debug", minutes=1.0, stages=()))
    with pytest.raises(ValueError, match="finshed"):
        Reproduction(tmp_path / "run", print)._update(finshed=("flow",))


def test_as_many_prompts_as_the_time_left_allows(tmp_path: Path, tiny_model: Path) -> None:
    pipeline = SnapGenPipeline.from_pretrained(tiny_model)
    for minutes, expected in ((1e-3, 2), (1e4, 20)):
        folder = tmp_path / str(minutes)
        start(folder, DEBUG, Plan(name="debug", minutes=minutes, stages=()))
        reproduction = Reproduction(folder, print)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            assert reproduction._settle_count([pipeline, pipeline]) == expected
            assert reproduction._settle_count([]) == reproduction.plan.count == expected  # it is settled


def test_the_time_of_a_killed_stage_counts(tmp_path: Path) -> None:
    start(tmp_path / "run", DEBUG, Plan(name="debug", minutes=1.0, stages=(), spent={"flow": 5.0}))
    reproduction = Reproduction(tmp_path / "run", print)
    (tmp_path / "run" / "flow").mkdir()
    checkpoint = tmp_path / "run" / "flow" / "checkpoint"
    checkpoint.write_text("")
    os.utime(checkpoint, (1042.0, 1042.0))  # its folder may be newer: that of an import is
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path / "run")
        reproduction._update(running=("flow", 1000.0))
        reproduction._count_killed()
        reproduction._count_killed()
    plan = Reproduction(tmp_path / "run", print).plan
    assert (plan.spent, plan.running) == ({"flow": 47.0}, None)


@pytest.mark.slow
def test_interrupted_and_moved_it_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_renders: None, capfd: pytest.CaptureFixture[str]
) -> None:
    whole, half, moved, state = (tmp_path / name for name in ("whole", "half", "moved", "state"))
    # Hardly any time: every stage gets the fewest steps, which do not depend on the machine.
    options = ["reproduce", "debug", "--recipes", str(DEBUG), "--minutes", "0.01", "--count", "2"]
    options += ["--without", "teacher,distill", "--set", "step.adversary.weight=0.2"]
    assert run([*options, "--out", str(whole)]) == 0
    assert capfd.readouterr().out == f"{whole}/report.md\n"
    assert not list(whole.glob("*/checkpoints"))
    assert run(["reproduce", "mini", "--out", str(whole), "--resume"]) == 1
    assert f"{whole} is a reproduction of debug, not of mini: give its name" in capfd.readouterr().err
    assert run([*options, "--out", str(whole)]) == 1
    assert f"{whole} is there already: continue it with --resume" in capfd.readouterr().err

    # As far as the base model; then step distillation is interrupted at its third step.
    shutil.copytree(whole, half)
    for name in ("step", "evaluation"):
        shutil.rmtree(half / name)
    plan = json.loads((half / "plan.json").read_text())
    (half / "plan.json").write_text(json.dumps(plan | {"finished": plan["finished"][:-1]}))
    steps = []
    batch = StepStage.batch

    def interrupted(stage: StepStage, step: int) -> dict[str, Any]:
        if stage.context.run == Path("step"):
            steps.append(step)
            if len(steps) == 5:  # a step has two turns
                signal.raise_signal(signal.SIGINT)
        return batch(stage, step)

    with monkeypatch.context() as patch:
        patch.setattr(StepStage, "batch", interrupted)
        with pytest.raises(SystemExit):
            run(["reproduce", "debug", "--out", str(half), "--resume"])
    assert Reproduction(half, print).plan.finished == ("autoencoder", "text", "nouns", "layout", "flow")
    assert [folder.name for folder in (half / "step" / "checkpoints").iterdir()] == ["step_00000003"]

    assert run(["reproduce", "debug", "--out", str(half), "--export", str(state)]) == 0
    shutil.rmtree(half)  # nothing of it is needed
    assert run(["reproduce", "debug", "--out", str(moved), "--import", str(state)]) == 0
    for stage in ("flow", "step"):
        assert manifest(whole / stage / "model") == manifest(moved / stage / "model")

    reports = [json.loads((folder / "report.json").read_text()) for folder in (whole, moved)]
    assert [model["name"] for model in reports[0]["models"]] == ["base", "few-step"]
    assert [model["guidance"] for model in reports[0]["models"]] == [4.0, 1.0]
    for key in ("models", "autoencoder"):
        assert reports[0][key] == reports[1][key]
    for stage in reports[0]["stages"]:
        assert stage["steps"] == 4 and stage["samples"] == 4 * stage["batch_size"]
    page = (moved / "report.md").read_text()
    assert "No time was left for autoencoder, text, nouns, layout, flow, step: the fewest steps were trained." in page
    assert "| few-step | 2 |" in page and "| base | 2, guided |" in page
    for picture in ("flow/plots/timesteps.png", "step/samples/step_00000004.png", "evaluation/step/scenes/sheet.png"):
        assert f"({picture})" in page and (moved / picture).is_file()
    again = Reproduction(moved, print).run()  # nothing is done again
    assert all(again[key] == reports[1][key] for key in again if key != "minutes")
