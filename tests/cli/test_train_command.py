"""`snapgen train` as a command: recipe to stage to run folder, and its refusals."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import yaml
from support.regression import RegressionStage, make_recipe

from snapgen.cli.train import train
from snapgen.config import RecipeError
from snapgen.train.stages import STAGES, load_recipe, load_stage


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe of the regression stage, registered for the test, in an otherwise empty working folder."""
    monkeypatch.setitem(STAGES, "regression", "support.regression:RegressionStage")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "debug" / "curve.yaml"
    path.parent.mkdir()
    path.write_text(json.dumps(make_recipe().model_dump(mode="json")))  # JSON is YAML
    return path


def test_default_run_folder_and_overrides(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(recipe, ["train.steps=3"])
    assert capsys.readouterr().out == "runs/debug/curve/model\n"
    assert Path("runs/debug/curve/checkpoints/step_00000003").is_dir()
    train(recipe, ["train.steps=4"], resume=True)
    assert Path("runs/debug/curve/checkpoints/step_00000004").is_dir()


def test_the_run_folder_keeps_the_merged_recipe(recipe: Path) -> None:
    """Without a base, so that it can be read and resumed when the base is gone or has changed."""
    own = recipe.with_name("own.yaml")
    own.write_text("base: curve.yaml\nseed: 9\n")
    train(own, ["train.steps=1"])
    whole = yaml.safe_load(Path("runs/debug/own/recipe.yaml").read_text())
    expected = make_recipe(seed=9).model_dump(mode="json")
    assert whole == expected | {"train": expected["train"] | {"steps": 1}}
    recipe.unlink()
    assert load_recipe(Path("runs/debug/own/recipe.yaml")).model_dump(mode="json") == whole
    train(Path("runs/debug/own/recipe.yaml"), ["train.steps=2"], out=Path("runs/debug/own"), resume=True)
    assert Path("runs/debug/own/checkpoints/step_00000002").is_dir()


def test_out_names_the_run_folder(recipe: Path) -> None:
    train(recipe, ["train.steps=1"], out=Path("elsewhere"))
    assert Path("elsewhere/model/model.safetensors").is_file()
    assert not Path("runs").exists()


def test_refusals_are_one_line(recipe: Path) -> None:
    with pytest.raises(RecipeError, match=r"^stage 'flaw' is unknown; known stages: autoencoder, text, class"):
        train(recipe, ["stage=flaw"])
    with pytest.raises(RecipeError, match=r"stage: expected one of autoencoder.*\(given: None\)"):
        train(recipe, ["stage="])
    with pytest.raises(RecipeError, match=r"curve.yaml: unknown key train.batches"):
        train(recipe, ["train.batches=3"])
    assert not Path("runs").exists()


def test_missing_extra_names_the_command(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("snapgen.cli.options.find_spec", lambda name: None if name == "tensorboard" else find(name))
    with pytest.raises(ValueError, match=r"training needs tensorboard: pip install 'snapgen\[train\]'"):
        train(recipe)


def test_the_registry_loads_lazily(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STAGES, "regression", "support.regression:RegressionStage")
    assert load_stage("regression") is RegressionStage
