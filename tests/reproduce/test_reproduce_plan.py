"""What `snapgen reproduce` plans: stages, their recipes and steps, and what it refuses."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.recipes import RECIPES

from snapgen.cli.main import run
from snapgen.reproduce.plan import (
    Cost,
    Plan,
    alone,
    choose_stages,
    fit_steps,
    read_plan,
    stage_recipe,
    start,
    write_plan,
)
from snapgen.reproduce.run import Reproduction
from snapgen.train.stages import load_recipe

DEBUG = RECIPES / "debug"


def test_stages_can_be_left_out() -> None:
    assert choose_stages(()) == ("autoencoder", "text", "nouns", "layout", "flow", "teacher", "distill", "step")
    assert choose_stages(("distill", "teacher")) == ("autoencoder", "text", "nouns", "layout", "flow", "step")
    assert choose_stages(("step",), initial="mini-base") == ("flow", "teacher", "distill")
    with pytest.raises(ValueError, match="--without flow: only teacher, distill, step can be skipped"):
        choose_stages(("flow",))
    with pytest.raises(ValueError, match="of no use without each other; skip teacher,distill"):
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
        patch.setattr(Reproduction, "run", lambda reproduction: None)
        assert run([*words[1:], "--recipes", str(DEBUG), "--out", str(tmp_path / "run")]) == 0
    assert read_plan(tmp_path / "run") == plan


def test_a_stage_builds_on_those_before_it() -> None:
    for student, without in (("distill", ()), ("flow", ("teacher", "distill"))):
        plan = Plan(name="mini", minutes=1.0, stages=choose_stages(without))
        step: Any = stage_recipe(RECIPES / "mini", plan, "step", steps=7)
        assert (step.teacher, str(step.initial)) == (f"{student}/model", f"{student}/model")
        assert (str(step.autoencoder), step.text, str(step.cache)) == ("autoencoder/model", "text/model", "latents")
        assert (step.train.steps, step.train.batch_size) == (7, 16)
        if student == "distill":
            taught: Any = stage_recipe(RECIPES / "mini", plan, "distill")
            assert (taught.teacher, str(taught.initial)) == ("teacher/model", "flow/model")


def test_the_opening_stages_start_from_one_another() -> None:
    plan = Plan(name="mini", minutes=1.0, stages=choose_stages(()))
    initial = [stage_recipe(RECIPES / "mini", plan, stage).initial for stage in ("nouns", "layout", "flow")]
    assert initial == [None, Path("nouns/model"), Path("layout/model")]


def test_a_setting_for_one_stage_or_all() -> None:
    overrides = ("all.data.nouns=[everything]", "all.data.resolution=64", "step.data.resolution=32")
    plan = Plan(name="debug", minutes=1.0, stages=choose_stages(()), overrides=overrides)
    recipes: dict[str, Any] = {stage: stage_recipe(DEBUG, plan, stage) for stage in plan.stages}
    data = {stage: recipe.data for stage, recipe in recipes.items()}
    assert {stage: settings.resolution for stage, settings in data.items()} == dict.fromkeys(data, 64) | {"step": 32}
    assert all(len(settings.nouns) > 700 for settings in data.values())


def test_stages_that_are_given_are_not_trained(tmp_path: Path) -> None:
    given = {"autoencoder": "/elsewhere/autoencoder/model", "text": "/elsewhere/text/model"}
    stages = choose_stages(("teacher", "distill", "step"), given=given)
    assert stages == ("nouns", "layout", "flow")
    plan = Plan(name="debug", minutes=1.0, stages=stages, given=given)
    recipe = stage_recipe(DEBUG, plan, "flow")
    assert (str(recipe.autoencoder), recipe.text) == tuple(given.values())
    assert "--autoencoder /elsewhere/autoencoder/model --text /elsewhere/text/model" in plan.command


def test_one_process_at_a_time(tmp_path: Path) -> None:
    start(tmp_path / "run", DEBUG, Plan(name="debug", minutes=1.0, stages=()))
    message = "run is in use by another snapgen reproduce: wait for it, or stop it"
    with alone(tmp_path / "run"), pytest.raises(ValueError, match=message), alone(tmp_path / "run"):
        pass
    with alone(tmp_path / "run"):  # it is free again
        pass


def test_shares_of_what_waits() -> None:
    plan = Plan(name="debug", minutes=1.0, stages=("text", "flow", "step"), finished=("text",), spent={"text": 15.0})
    assert plan.seconds_left == 45
    assert plan.share("flow") == 7 / (7 + 2.5 + 2) and plan.share("step") == 2.5 / (7 + 2.5 + 2)
    asked = plan.model_copy(update={"count": 20})  # the scores take no part of the minutes
    assert asked.share("flow") == 7 / 9.5


def test_the_fitting_steps() -> None:
    recipe = stage_recipe(DEBUG, Plan(name="debug", minutes=1.0, stages=("flow",)), "flow")  # of 4 steps
    cost = Cost(step=0.5, once=10.0, each=6.0, measuring=26.0)
    flow = fit_steps("flow", recipe, cost, given=1000.0, fewest=4)
    # A checkpoint every 120 s, twenty times what it takes: 1.05 times the steps fit into 1000 - 26 - 10 - 4 * 6 s.
    assert flow.schedule == {"steps": 1790, "warmup_steps": 0, "sample_every": 448, "checkpoint_every": 240}
    assert not flow.late and flow.seconds_given == 1000
    late = fit_steps("flow", recipe, cost, given=50.0, fewest=4, done=3, warmup_steps=1)
    assert (late.steps, late.warmup_steps, late.late) == (7, 1, True)
    assert fit_steps("nouns", recipe, cost, given=1000.0, fewest=4).steps == 4  # good early: as the recipe says
    assert fit_steps("nouns", recipe, cost, given=1000.0, fewest=4, done=9).steps == 9


def test_a_plan_that_was_written_before_is_read(tmp_path: Path) -> None:
    """The plan.json of version 0.1, half way."""
    stage = {"steps": 3751, "warmup_steps": 200, "sample_every": 938, "checkpoint_every": 40, "device": "a CPU"}
    stage |= {"seconds_per_step": 1.4, "seconds_once": 3.5, "seconds_each": 2.0, "seconds_given": 5400.0, "late": False}
    written = {"name": "mini", "minutes": 115, "stages": ["flow", "step"], "initial": "mini-base", "given": {}}
    written |= {"count": None, "overrides": ["flow.seed=10"], "chosen": {"flow": stage}, "finished": ["flow"]}
    written |= {"spent": {"flow": 5465.4}, "running": ["step", 1700000000.5]}
    (tmp_path / "plan.json").write_text(json.dumps(written))
    plan = read_plan(tmp_path)
    assert (plan.finished, plan.running, plan.chosen["flow"].steps) == (("flow",), ("step", 1700000000.5), 3751)
    write_plan(plan, tmp_path)
    assert json.loads((tmp_path / "plan.json").read_text()) == written


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ([], "there is no recipe recipes/mini/autoencoder.yaml: run this in a checkout of the repository"),
        (["--without", "text"], "--without text: only teacher, distill, step can be skipped"),
        (["--minutes", "0"], "--minutes 0.0 is out of range"),
        (["--device", "tpu"], "--device tpu is not known: use cpu or cuda"),
        (
            ["--set", "text.seed=1", "--recipes", str(DEBUG), "--set", "flaw.seed=1"],
            "--set flaw.seed=1: expected STAGE.",
        ),
        (["--recipes", str(DEBUG), "--set", "step.train.lerning_rate=1"], "unknown key train.lerning_rate"),
        (["--recipes", str(DEBUG), "--set", "flow.train.steps=9"], "--set flow.train.steps=9: reproduce chooses"),
        (["--resume"], "runs/reproduce holds no reproduction to continue"),
        (["--initial", "mini"], "--initial mini is not known: only mini-base can be trained on"),
        (["--resume", "--minutes", "3"], "--minutes is fixed by the plan of the run that continues"),
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


def test_the_folder_holds_recipes_without_bases(tmp_path: Path) -> None:
    """Another machine has neither the bases nor the files of prompts."""
    recipes = DEBUG.parent / "mini"
    plan = Plan(name="mini", minutes=1.0, stages=choose_stages(()))
    start(tmp_path / "run", recipes, plan)
    copies = sorted(path.name for path in (tmp_path / "run" / "recipes").iterdir())
    assert copies == sorted(f"{stage}.yaml" for stage in plan.stages)
    for name in copies:
        copy = tmp_path / "run" / "recipes" / name
        assert "base" not in yaml.safe_load(copy.read_text())
        assert load_recipe(copy) == load_recipe(recipes / name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": ["flow", "../../elsewhere"]}, "stages.1: string should match pattern"),  # its folder is emptied
        ({"finished": ["/etc"]}, "finished.0: string should match pattern"),
        ({"running": ["..", 0.0]}, "running.0: string should match pattern"),
        ({"minutes": "many"}, "minutes: input should be a valid number"),
        ({"more": 1}, "more: extra inputs are not permitted"),
    ],
)
def test_a_plan_from_elsewhere_names_stages(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    start(tmp_path / "run", DEBUG, Plan(name="debug", minutes=1.0, stages=("autoencoder", "flow")))
    assert read_plan(tmp_path / "run").stages == ("autoencoder", "flow")
    file = tmp_path / "run" / "plan.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ValueError, match=f"run holds no reproduction to continue: {message}") as caught:
        read_plan(tmp_path / "run")
    assert "\n" not in str(caught.value)
    for content in ("[" * 100_000, "", "\0"):
        file.write_text(content)
        with pytest.raises(ValueError, match="run holds no reproduction to continue: invalid json"):
            read_plan(tmp_path / "run")
