"""Recipes are strict: whatever is wrong with one is a single line that names the key and the file."""

from pathlib import Path
from typing import Any

import pytest

from snapgen.config import Recipe, RecipeError, complete_recipe, parse_recipe, read_recipe

GOOD = "stage: flow\nseed: 3\ntrain:\n  steps: 10\n  batch_size: 4\n  learning_rate: 1\n  betas: [0.9, 0.95]\n"


def load(path: Path, *overrides: str) -> Recipe:
    return parse_recipe(Recipe, read_recipe(path, list(overrides)), f"recipe {path}")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD)
    return path


def test_values_defaults_and_overrides(recipe: Path) -> None:
    settings = load(recipe, "train.steps=2000", "train.schedule=cosine", "train.precision='bf16'")
    assert settings.seed == 3
    assert settings.train.steps == 2000
    assert settings.train.learning_rate == 1.0
    assert settings.train.betas == (0.9, 0.95)
    assert settings.train.schedule == "cosine"
    assert settings.train.precision == "bf16"
    assert settings.train.gradient_clip == 1.0


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 0.001), ("2E4", 2e4), ("1.5e-3", 0.0015), ("0.001", 0.001), ("3", 3.0)]
)
def test_numbers_may_be_written_as_elsewhere(text: str, value: float, recipe: Path) -> None:
    assert load(recipe, f"train.learning_rate={text}").train.learning_rate == value
    recipe.write_text(GOOD.replace("learning_rate: 1\n", f"learning_rate: {text}\n"))
    assert load(recipe).train.learning_rate == value


@pytest.mark.parametrize(
    ("override", "fragment"),
    [
        ("train.stepz=5", "unknown key train.stepz"),
        ("colour=red", "unknown key colour"),
        ("train.steps='5'", "train.steps: "),
        ("train.steps=5.5", "train.steps: "),
        ("train.steps=0", "train.steps: "),
        ("train.steps=true", "train.steps: "),
        ("train.steps=", "train.steps: "),
        ("train.ema_decay=1", "train.ema_decay: "),
        ("train.schedule=sawtooth", "train.schedule: "),
        ("train.learning_rate=.nan", "train.learning_rate: "),
        ("train=7", "train: "),
    ],
)
def test_a_wrong_value_is_named_with_its_file(override: str, fragment: str, recipe: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load(recipe, override)
    message = str(caught.value)
    assert fragment in message
    assert str(recipe) in message
    assert "\n" not in message


@pytest.mark.parametrize("override", ["train.steps", "=5", "train.steps.more=5", "train.steps=[5"])
def test_a_malformed_override_is_named(override: str, recipe: Path) -> None:
    with pytest.raises(RecipeError, match="override '") as caught:
        load(recipe, override)
    assert override in str(caught.value)


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"- a\n- list\n", "holds list"),
        (b"", "holds NoneType"),
        (b"stage: [flow\n", "is not YAML"),
        (b"\xff\xfe", "cannot be read"),
        (b"stage: flow\n", "train: "),
    ],
)
def test_a_file_that_is_no_recipe(content: bytes, fragment: str, recipe: Path) -> None:
    recipe.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load(recipe)
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="does not exist"):
        load(tmp_path / "nothing.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        load(tmp_path)


def test_settings_are_frozen(recipe: Path) -> None:
    settings: Any = load(recipe)
    with pytest.raises(ValueError, match="frozen"):
        settings.train.steps = 5


def test_an_old_recipe_is_completed_with_defaults(recipe: Path) -> None:
    whole = load(recipe).model_dump(mode="json")
    old = whole | {"train": {key: value for key, value in whole["train"].items() if key != "skip_factor"}}
    assert complete_recipe(Recipe, old) == whole
    unknown = whole | {"colour": "red"}
    assert complete_recipe(Recipe, unknown) == unknown
