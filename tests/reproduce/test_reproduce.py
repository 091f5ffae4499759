"""`snapgen reproduce` at the debug size: stage by stage, interrupted, moved to another folder, and going on."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from snapgen.cli.main import run
from snapgen.evaluation.suites import scenes
from snapgen.files import manifest
from snapgen.pipeline.text_to_image import SnapGenPipeline
from snapgen.reproduce.run import PART, Plan, Reproduction, StagePlan, choose_stages, stage_recipe, start, unpack
from snapgen.train.loop import train
from snapgen.train.report import read_metrics
from snapgen.train.stages import load_recipe, load_stage
from snapgen.train.stages.autoencoder import AutoencoderStage
from snapgen.train.stages.flow import FlowStage

ROOT = Path(__file__).parents[2]
DEBUG = ROOT / "recipes" / "debug"


def ignore(message: str) -> None:
    pass


@pytest.fixture
def few_renders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "MIN_RENDERS", 2)


def test_stages_can_be_left_out() -> None:
    assert choose_stages(()) == ("autoencoder", "text", "nouns", "layout", "flow", "teacher", "distill", "step")
    assert choose_stages(("distill", "teacher")) == ("autoencoder", "text", "nouns", "layout", "flow", "step")
    assert choose_stages(("step",), initial="mini-base") == ("flow", "teacher", "distill")
    with pytest.raises(ValueError, match="--without flow: only teacher, distill, step can be left out"):
        choose_stages(("flow",))
    with pytest.raises(ValueError, match="of no use without each other; leave out teacher,distill"):
        choose_stages(("teacher",))


def test_the_command_of_a_plan_makes_the_same_plan(tmp_path: Path) -> None:
    overrides = ("flow.data.mixture={single: 0.5, two: 0.5}", "all.seed=3")
    left_out = ("teacher", "distill")
    plan = Plan(
        name="debug",
        minutes=2.5,
        initial="mini-base",
        stages=choose_stages(left_out, initial="mini-base"),
        overrides=overrides,
    )
    words = shlex.split(plan.command)
    assert words[:3] == ["snapgen", "reproduce", "debug"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reproduction, "run", ignore)
        assert run([*words[1:], "--recipes", str(DEBUG), "--out", str(tmp_path / "run")]) == 0
    assert Reproduction(tmp_path / "run", ignore).plan == plan


def test_a_stage_builds_on_those_before_it(tmp_path: Path) -> None:
    for name, student, left_out in (("all", "distill", ()), ("some", "flow", ("teacher", "distill"))):
        start(
            tmp_path / name, ROOT / "recipes" / "mini", Plan(name="mini", minutes=1.0, stages=choose_stages(left_out))
        )
        reproduction = Reproduction(tmp_path / name, ignore)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path / name)
            step: Any = reproduction.recipe("step", steps=7)
            taught: Any = None if left_out else reproduction.recipe("distill")
        assert (step.teacher, str(step.initial)) == (f"{student}/model", f"{student}/model")
        assert (str(step.autoencoder), step.text, str(step.cache)) == ("autoencoder/model", "text/model", "latents")
        assert (step.train.steps, step.train.batch_size) == (7, 16)
        assert left_out or (taught.teacher, str(taught.initial)) == ("teacher/model", "flow/model")


def test_the_opening_stages_start_from_one_another() -> None:
    plan = Plan(name="mini", minutes=1.0, stages=choose_stages(()))
    initial = [stage_recipe(ROOT / "recipes" / "mini", plan, stage).initial for stage in ("nouns", "layout", "flow")]
    assert initial == [None, Path("nouns/model"), Path("layout/model")]


def test_the_folder_holds_recipes_without_bases(tmp_path: Path) -> None:
    """Another machine has neither the bases nor the files of prompts."""
    plan = Plan(name="mini", minutes=1.0, stages=choose_stages(()))
    start(tmp_path / "run", ROOT / "recipes" / "mini", plan)
    copies = sorted(path.name for path in (tmp_path / "run" / "recipes").iterdir())
    assert copies == sorted(f"{stage}.yaml" for stage in plan.stages)
    for name in copies:
        copy = tmp_path / "run" / "recipes" / name
        assert "base" not in yaml.safe_load(copy.read_text())
        assert load_recipe(copy) == load_recipe(ROOT / "recipes" / "mini" / name)


def test_a_setting_for_one_stage_or_all(tmp_path: Path) -> None:
    overrides = ("all.data.nouns=[everything]", "all.data.resolution=64", "step.data.resolution=32")
    plan = Plan(name="debug", minutes=1.0, stages=choose_stages(()), overrides=overrides)
    start(tmp_path / "run", DEBUG, plan)
    reproduction: Any = Reproduction(tmp_path / "run", ignore)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path / "run")
        data = {stage: reproduction.recipe(stage).data for stage in plan.stages}
    assert {stage: settings.resolution for stage, settings in data.items()} == dict.fromkeys(data, 64) | {"step": 32}
    assert all(len(settings.nouns) > 700 for settings in data.values())


def test_the_steps_fit_into_the_share(tmp_path: Path) -> None:
    """The autoencoder's share of a hundred hours, at the rate that was measured."""
    start(tmp_path / "run", DEBUG, Plan(name="debug", minutes=6000.0, stages=choose_stages(("teacher", "distill"))))
    recipe = tmp_path / "run" / "recipes" / "autoencoder.yaml"
    recipe.write_text(recipe.read_text().replace("steps: 4", "steps: 1000000000"))
    reproduction = Reproduction(tmp_path / "run", ignore)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path / "run")
        chosen = reproduction._choose("autoencoder")
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


def test_a_stage_that_is_good_early_gets_no_more_steps_than_its_recipe_says(tmp_path: Path) -> None:
    start(tmp_path / "run", DEBUG, Plan(name="debug", minutes=6000.0, stages=choose_stages(("teacher", "distill"))))
    reproduction = Reproduction(tmp_path / "run", ignore)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path / "run")
        chosen = reproduction._choose("autoencoder")
        train(load_stage("autoencoder"), reproduction.recipe("autoencoder", steps=3), Path("autoencoder"), resume=False)
        continued = reproduction._choose("autoencoder")
    assert chosen.steps == continued.steps == 4 and not chosen.late


def test_stages_that_are_given_are_not_trained(tmp_path: Path) -> None:
    given = {"autoencoder": "/elsewhere/autoencoder/model", "text": "/elsewhere/text/model"}
    stages = choose_stages(("teacher", "distill", "step"), given=given)
    assert stages == ("nouns", "layout", "flow")
    plan = Plan(name="debug", minutes=1.0, stages=stages, given=given)
    recipe = stage_recipe(DEBUG, plan, "flow")
    assert (str(recipe.autoencoder), recipe.text) == tuple(given.values())
    assert "--autoencoder /elsewhere/autoencoder/model --text /elsewhere/text/model" in plan.command


def test_a_stage_that_began_elsewhere_is_timed_anew(tmp_path: Path) -> None:
    """Its steps are those that this machine can do, beyond those that are done; its warm-up stays."""
    start(tmp_path / "run", DEBUG, Plan(name="debug", minutes=6000.0, stages=choose_stages(("teacher", "distill"))))
    reproduction = Reproduction(tmp_path / "run", ignore)
    there = {"steps": 3, "warmup_steps": 1, "sample_every": 3, "checkpoint_every": 2, "late": False}
    there |= {f"seconds_{name}": 1.0 for name in ("per_step", "once", "each", "given")}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path / "run")
        begun = reproduction.recipe("autoencoder", steps=2, warmup_steps=1)
        train(load_stage("autoencoder"), begun, Path("autoencoder"), resume=False)
        reproduction._update(chosen={"autoencoder": StagePlan(device="another", **there)})
        patch.setattr("snapgen.reproduce.run.PROBE", 1)
        patch.setattr(Reproduction, "_left", lambda self: 0.0)
        reproduction._train("autoencoder")
        trained = read_metrics(Path("autoencoder/metrics.jsonl"))
    chosen = reproduction.plan.chosen["autoencoder"]
    assert (chosen.steps, chosen.warmup_steps, chosen.late) == (3, 1, True) and chosen.device != "another"
    assert [line["step"] for line in trained] == [1, 2, 3]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_told_to_stop_it_is_no_success(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """Also while the rate is measured: whoever waits for a report must not take an old one."""
    start(tmp_path / "run", DEBUG, Plan(name="debug", minutes=1.0, stages=choose_stages(())))
    batch = AutoencoderStage.batch

    def stopped(stage: AutoencoderStage, step: int) -> Any:
        signal.raise_signal(number)
        return batch(stage, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutoencoderStage, "batch", stopped)
        with pytest.raises(SystemExit) as stop:
            Reproduction(tmp_path / "run", ignore).run()
    assert stop.value.code == code and not (tmp_path / "run" / "report.json").exists()


def test_it_goes_on_from_the_bundled_model(
    tmp_path: Path, tiny_model: Path, few_renders: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's autoencoder and text encoder stay, its UNet learns: first as it is, then after some steps."""
    monkeypatch.setattr("snapgen.train.places.bundled_folder", lambda: tiny_model)
    options = ["reproduce", "debug", "--recipes", str(DEBUG), "--initial", "mini-base", "--minutes", "0.01"]
    out = tmp_path / "run"
    assert run([*options, "--count", "2", "--without", "teacher,distill", "--out", str(out)]) == 0
    assert Reproduction(out, ignore).plan.stages == ("flow", "step")
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
    assert "# debug, made from mini-base" in page and "going on from mini-base" in page


def test_as_many_prompts_as_the_time_left_allows(tmp_path: Path, tiny_model: Path) -> None:
    pipeline = SnapGenPipeline.from_pretrained(tiny_model)
    for minutes, expected in ((1e-3, 2), (1e4, 20)):
        folder = tmp_path / str(minutes)
        start(folder, DEBUG, Plan(name="debug", minutes=minutes, stages=()))
        reproduction = Reproduction(folder, ignore)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            assert reproduction._count([pipeline, pipeline]) == expected
            assert reproduction._count([]) == reproduction.plan.count == expected  # it is settled


def test_one_process_at_a_time(tmp_path: Path) -> None:
    start(tmp_path / "run", DEBUG, Plan(name="debug", minutes=1.0, stages=()))
    reproduction = Reproduction(tmp_path / "run", ignore)
    with (
        reproduction._alone(),
        pytest.raises(ValueError, match="run is in use by another snapgen reproduce: wait for it, or stop it"),
    ):
        Reproduction(tmp_path / "run", ignore).export(tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_the_time_of_a_killed_stage_counts(tmp_path: Path) -> None:
    start(tmp_path / "run", DEBUG, Plan(name="debug", minutes=1.0, stages=(), spent={"flow": 5.0}))
    reproduction = Reproduction(tmp_path / "run", ignore)
    (tmp_path / "run" / "flow").mkdir()
    checkpoint = tmp_path / "run" / "flow" / "checkpoint"
    checkpoint.write_text("")
    os.utime(checkpoint, (1042.0, 1042.0))  # its folder may be newer: that of an import is
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path / "run")
        reproduction._update(running=("flow", 1000.0))
        reproduction._count_killed()
        reproduction._count_killed()
    plan = Reproduction(tmp_path / "run", ignore).plan
    assert (plan.spent, plan.running) == ({"flow": 47.0}, None)


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
    batch = FlowStage.batch

    def interrupted(stage: FlowStage, step: int) -> dict[str, Any]:
        if stage.context.run == Path("step"):
            steps.append(step)
            if len(steps) == 5:  # a step has two turns
                signal.raise_signal(signal.SIGINT)
        return batch(stage, step)

    with monkeypatch.context() as patch:
        patch.setattr(FlowStage, "batch", interrupted)
        with pytest.raises(SystemExit):
            run(["reproduce", "debug", "--out", str(half), "--resume"])
    assert Reproduction(half, ignore).plan.finished == ("autoencoder", "text", "nouns", "layout", "flow")
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
    again = Reproduction(moved, ignore).run()  # nothing is done again
    assert all(again[key] == reports[1][key] for key in again if key != "minutes")


def test_export_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_folder, state = tmp_path / "run", tmp_path / "state"
    finished = ("autoencoder", "text", "teacher")
    start(run_folder, DEBUG, Plan(name="debug", minutes=1.0, stages=choose_stages(()), finished=finished))
    for stage in ("autoencoder", "text", "flow", "teacher"):
        (run_folder / stage / "model" / "part").mkdir(parents=True)
        (run_folder / stage / "model" / "part" / "weights").write_bytes(b"same in all" * 9000)
    monkeypatch.setattr("snapgen.reproduce.run.PART", 50_000)
    reproduction = Reproduction(run_folder, ignore)
    files = reproduction.export(state)
    assert PART == 16 * 2**20
    assert len(files) > 3 and all(file.stat().st_size <= 50_000 for file in files)
    assert sum(file.stat().st_size for file in files) < 2 * 99_000  # the same content once
    unpack(state, run_folder / ".." / "back")
    expected = {name: digest for name, digest in manifest(run_folder).items() if not name.startswith(("flow", ".lock"))}
    assert manifest(tmp_path / "back") == expected  # flow is not finished, and has no checkpoint yet
    assert Path("teacher/model/part/weights") in reproduction.needed()
    reproduction.plan = reproduction.plan.model_copy(update={"finished": (*finished, "distill")})
    assert Path("teacher/model/part/weights") not in reproduction.needed()  # nothing reads it any more

    part = files[-1]
    assert part.name == f"state.tar.{len(files) - 2:04}"
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=f"--import .*state: {part.name} is damaged; copy it again"):
        unpack(state, tmp_path / "no")
    part.unlink()
    with pytest.raises(ValueError, match=f"{part.name} is missing"):
        unpack(state, tmp_path / "no")
    (state / "manifest.json").unlink()
    with pytest.raises(ValueError, match="manifest.json is missing or damaged"):
        unpack(state, tmp_path / "no")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("name", "kind"), [("../out", tarfile.REGTYPE), ("/out", tarfile.REGTYPE), ("out", tarfile.SYMTYPE)]
)
def test_an_import_writes_files_inside_its_folder_only(tmp_path: Path, name: str, kind: bytes) -> None:
    (tmp_path / "state").mkdir()
    with tarfile.open(tmp_path / "state" / "state.tar.0000", "w") as tar:
        entry = tarfile.TarInfo(name if name != "/out" else str(tmp_path / "out"))
        entry.type, entry.linkname = kind, "/etc/hostname"
        tar.addfile(entry)
    (tmp_path / "state" / "manifest.json").write_text(json.dumps({"files": manifest(tmp_path / "state")}))
    with pytest.raises(ValueError, match="out is not a file inside the exported folder"):
        unpack(tmp_path / "state", tmp_path / "inside")
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ([], "there is no recipe recipes/mini/autoencoder.yaml: run this in a checkout of the repository"),
        (["--without", "text"], "--without text: only teacher, distill, step can be left out"),
        (["--minutes", "0"], "--minutes 0.0 is out of range"),
        (["--device", "tpu"], "--device tpu is not known: use cpu or cuda"),
        (
            ["--set", "text.seed=1", "--recipes", str(DEBUG), "--set", "flaw.seed=1"],
            "--set flaw.seed=1: expected STAGE.",
        ),
        (["--recipes", str(DEBUG), "--set", "step.train.lerning_rate=1"], "unknown key train.lerning_rate"),
        (["--recipes", str(DEBUG), "--set", "flow.train.steps=9"], "--set flow.train.steps=9: reproduce chooses"),
        (["--resume"], "runs/reproduce holds no reproduction that goes on"),
        (["--initial", "mini"], "--initial mini is not known: only mini-base can be trained on"),
        (["--resume", "--minutes", "3"], "--minutes is settled by the plan that goes on"),
        (["--resume", "--export", "state"], "--resume, --export and --import exclude each other"),
        (["--import", "state"], "--import state: manifest.json is missing or damaged"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    fragment: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["reproduce", "mini", *arguments]) == 1
    err = capfd.readouterr().err
    assert err.startswith("snapgen: error: ") and err.count("\n") == 1
    assert fragment in err
    assert not list(tmp_path.iterdir())
