"""Recipes are strict: whatever is wrong with one is a single line that names the key and the file."""

import os
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.recipes import RECIPES, recipe_of

from snapgen.config import Loader, Recipe, RecipeError, Settings, complete_recipe, parse_recipe, read_recipe, to_yaml
from snapgen.train.stages import STAGES, load_stage

GOOD = "stage: flow\nseed: 3\ntrain:\n  steps: 10\n  batch_size: 4\n  learning_rate: 1\n  betas: [0.9, 0.95]\n"


def load(path: Path, *overrides: str) -> Recipe:
    settings, files = read_recipe(path, overrides)
    return parse_recipe(Recipe, settings, f"recipe {path}", files)


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


def test_a_value_that_may_have_settings_is_replaced_whole() -> None:
    with pytest.raises(
        RecipeError, match="model is a value, not a section; to give it settings, .*: model={KEY: VALUE"
    ):
        recipe_of(RECIPES / "debug" / "flow.yaml", "model.ffn_ratio=2")
    recipe = recipe_of(RECIPES / "debug" / "flow.yaml", "model={preset: debug}", "model.ffn_ratio=2")
    assert recipe.model.changes() == {"ffn_ratio": 2}


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


LAUGHS = "a: &a [x, x, x, x]\n" + "".join(
    f"{chr(name + 1)}: &{chr(name + 1)} [{', '.join([f'*{chr(name)}'] * 9)}]\n" for name in range(97, 112)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LAUGHS, "line 2: the alias *a stands for another value: write the value itself"),
        ("a: &a [*a]", "line 1: the alias *a stands for another value"),
        ("stage: flow\nseed: 1\nstage: flow", "line 3: the key stage is there twice"),
        ("train: {steps: 1, steps: 2}", "line 1: the key steps is there twice"),
        ("seed: 2020-01-01", "line 1: a date (2020-01-01) is no value of a setting; text belongs in quotes"),
        ("seed: 2020-13-45", "line 1: a date (2020-13-45) is no value of a setting"),
        ("a: b\ndata: !!set {x, y}", "line 2: a set is no value of a setting"),
        ("data: !!binary aGk=", "line 1: a binary (aGk=) is no value of a setting"),
        ("data: !!omap [a: 1]", "line 1: an ordered map is no value of a setting"),
        ("1: 2", "line 1: a key is an int: text is expected, in quotes if it looks like a value"),
        ("on: 2", "line 1: a key is a bool: text is expected"),
        ("? [a]\n: b", "line 1: a key is a seq: text is expected"),
        ("<<: {a: 1}", "line 1: a key is a merge: text is expected"),
        ("[" * 100_000, "line 1: it is nested more than 32 levels deep"),
        ("{a: " * 100_000, "line 1: it is nested more than 32 levels deep"),
        ("".join(" " * depth + "a:\n" for depth in range(1000)), "line 32: it is nested more than 32 levels deep"),
        ("seed: " + "9" * 5000, "cannot be read: Exceeds the limit"),
        ("seed: !!bool x", "cannot be read: 'x'"),
        ("seed: !!python/object/apply:os.system [touch ran]", "is not YAML: could not determine a constructor"),
        ("a: " + "x" * 2**20, "is longer than 1 MiB, the most that is read of such a file"),
    ],
)
def test_yaml_that_no_recipe_needs_is_refused_at_once(content: str, message: str, recipe: Path) -> None:
    recipe.write_text(content)
    tracemalloc.start()
    started = time.monotonic()
    with pytest.raises(RecipeError) as caught:
        load(recipe)
    assert time.monotonic() - started < 5
    assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    tracemalloc.stop()
    assert message in str(caught.value) and str(recipe) in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert not Path("ran").exists()


@pytest.mark.parametrize(("file", "message"), [("/dev/zero", "longer than 1 MiB"), ("pipe", "holds NoneType")])
def test_devices_and_pipes_end(file: str, message: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RecipeError, match=message):
        load(tmp_path / file)


def test_overrides_are_read_as_recipes_are(recipe: Path) -> None:
    for override, message in (
        ("seed=2020-01-01", "override 'seed=2020-01-01': line 1: a date"),
        ("train={steps: 1, steps: 2}", "the key steps is there twice"),
        ("data=[&a x, *a]", "the alias *a"),
        ("seed=" + "9" * 5000, "the value is not YAML"),
    ):
        with pytest.raises(RecipeError) as caught:
            load(recipe, override)
        assert message in str(caught.value)


def test_what_is_written_has_no_aliases(tmp_path: Path) -> None:
    shared = ["a cat"]
    text = to_yaml({"prompts": shared, "more": shared})
    assert "&" not in text and yaml.load(text, Loader) == {"prompts": shared, "more": shared}


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="does not exist"):
        load(tmp_path / "nothing.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        load(tmp_path)


def test_settings_are_frozen(recipe: Path) -> None:
    settings: Any = load(recipe)
    with pytest.raises(ValueError, match="frozen"):
        settings.train.steps = 5


def test_an_old_recipe_is_completed_with_defaults_and_without_what_is_retired(recipe: Path) -> None:
    whole = load(recipe).model_dump(mode="json")
    old = whole | {"train": {key: value for key, value in whole["train"].items() if key != "skip_factor"}}
    assert complete_recipe(Recipe, old) == whole
    unknown = whole | {"colour": "red"}
    assert complete_recipe(Recipe, unknown) == unknown

    class Faded(Recipe):
        retired = ("colour",)

    assert complete_recipe(Faded, unknown) == whole


BASE = """
seed: 3
initial: somewhere
data: {source: scenes, snap: 8, mixture: {single: 0.5, two: 0.5}}
text: [one, two]
"""


def extended(folder: Path, own: str, *overrides: str) -> dict[str, Any]:
    """What a recipe in `folder` comes to that says `own` and extends `BASE`, which stands in another folder."""
    (folder / "bases").mkdir()
    (folder / "bases" / "base.yaml").write_text(BASE)
    (folder / "own.yaml").write_text(f"base: bases/base.yaml\n{own}")
    settings = read_recipe(folder / "own.yaml", overrides).settings
    assert yaml.load(to_yaml(settings), Loader) == settings  # plain values: nothing of bases and tags remains
    assert "base" not in settings
    return settings


@pytest.mark.parametrize(
    ("own", "changes"),
    [
        ("", {}),
        ("seed: 4\nstage: flow", {"seed": 4, "stage": "flow"}),
        ("text: [three]", {"text": ["three"]}),
        ("initial: null", {"initial": None}),
        ("data: null", {"data": None}),
        ("seed: {a: 1}", {"seed": {"a": 1}}),
        (
            "data: {snap: 1, mixture: {two: 0.1, color: 0.2}}",
            {"data": {"source": "scenes", "snap": 1, "mixture": {"single": 0.5, "two": 0.1, "color": 0.2}}},
        ),
        ("data: !replace {source: folder, path: x}", {"data": {"source": "folder", "path": "x"}}),
        (
            "data: {mixture: !replace {color: 1.0}}",
            {"data": {"source": "scenes", "snap": 8, "mixture": {"color": 1.0}}},
        ),
        ("data: {snap: !remove }", {"data": {"source": "scenes", "mixture": {"single": 0.5, "two": 0.5}}}),
        (
            "more: !replace {a: {b: !replace {c: 1}}}\nlist: [!replace {d: 2}]",
            {"more": {"a": {"b": {"c": 1}}}, "list": [{"d": 2}]},
        ),
    ],
)
def test_a_recipe_extends_another(own: str, changes: dict[str, Any], tmp_path: Path) -> None:
    assert extended(tmp_path, own) == yaml.safe_load(BASE) | changes


def test_a_removed_setting_has_its_default(tmp_path: Path) -> None:
    assert "initial" not in extended(tmp_path, "initial: !remove")


def test_a_removed_section_leaves_the_others(tmp_path: Path) -> None:
    assert set(extended(tmp_path, "data: !remove")) == {"seed", "initial", "text"}


def test_overrides_apply_to_the_merged_recipe(tmp_path: Path) -> None:
    settings = extended(tmp_path, "data: {snap: 1}", "data.snap=2", "data.mixture={color: 1}", "text=[three]")
    assert settings["data"] == {"source": "scenes", "snap": 2, "mixture": {"color": 1}}
    assert settings["text"] == ["three"]


def test_a_base_has_a_base(tmp_path: Path) -> None:
    folder = tmp_path / "further"
    folder.mkdir()
    (tmp_path / "first.yaml").write_text(GOOD)
    (folder / "second.yaml").write_text("base: ../first.yaml\ntrain: {steps: 20}\n")
    (folder / "third.yaml").write_text("base: second.yaml\nseed: 5\ntrain: {batch_size: 8}\n")
    recipe = load(folder / "third.yaml")
    assert (recipe.seed, recipe.train.steps, recipe.train.batch_size) == (5, 20, 8)
    assert recipe.train.betas == (0.9, 0.95)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ("base: nothing.yaml", "recipe own.yaml: its base nothing.yaml does not exist"),
        ("base: listed.yaml", "recipe own.yaml: its base listed.yaml holds list, expected a mapping of settings"),
        ("base: folder", "recipe own.yaml: its base folder cannot be read: "),
        ("base: broken.yaml", "recipe own.yaml: its base broken.yaml is not YAML: "),
        ("base: 7", "recipe own.yaml: base: expected the name of a recipe file (given: 7)"),
        ("base: [good.yaml]", "recipe own.yaml: base: expected the name of a recipe file (given: ['good.yaml'])"),
        ("base:", "recipe own.yaml: base: expected the name of a recipe file (given: None)"),
        ("base: own.yaml", "base: the recipes extend one another in a circle: own.yaml -> own.yaml"),
        (
            "base: back.yaml",
            "recipe back.yaml: base: the recipes extend one another in a circle: own.yaml -> back.yaml -> own.yaml",
        ),
        ("base: good.yaml\ntrain: {stepz: !remove }", "recipe own.yaml: train.stepz: !remove, but no base says it"),
        ("seed: !remove", "recipe own.yaml: seed: !remove, but no base says it"),
        ("base: good.yaml\nseed: [[!remove ]]", "recipe own.yaml: seed: !remove, but no base says it"),
        ("base: good.yaml\ntrain: !replace 7", "recipe own.yaml is not YAML: expected a mapping"),
        ("base: good.yaml\ntrain: !replaced {}", "recipe own.yaml is not YAML: could not determine a constructor"),
    ],
)
def test_what_cannot_be_extended(own: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    files = {"own": own, "good": GOOD, "listed": "[a, list]", "broken": "stage: [flow", "back": "base: own.yaml"}
    for name, text in files.items():
        Path(f"{name}.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        load(Path("own.yaml"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("base", "own", "override", "message"),
    [
        ("steps: 1, stepz: 5", "seed: 1", "", "recipe own.yaml: unknown key train.stepz (in its base base.yaml)"),
        ("steps: 0", "train: {batch_size: 1}", "", "greater than 0 (given: 0) (in its base base.yaml)"),
        ("steps: 1", "train: {stepz: 5}", "", "recipe own.yaml: unknown key train.stepz"),
        ("steps: 1", "train: {steps: 0}", "", "greater than 0 (given: 0)"),
        ("steps: 1", "seed: 1", "train.steps=0", "greater than 0 (given: 0)"),
        ("batch_size: 1", "seed: 1", "", "recipe own.yaml: train.steps: field required"),
    ],
)
def test_a_wrong_key_is_named_with_the_base_that_says_it(
    base: str, own: str, override: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("first.yaml").write_text("stage: flow\ntrain: {learning_rate: 1, batch_size: 4}\n")
    Path("base.yaml").write_text(f"base: first.yaml\ntrain: {{{base}}}\n")
    Path("own.yaml").write_text(f"base: base.yaml\n{own}\n")
    with pytest.raises(RecipeError) as caught:
        load(Path("own.yaml"), *filter(None, [override]))
    assert str(caught.value).endswith(message)


def test_prompts_are_a_list_or_a_file(tmp_path: Path) -> None:
    lines = ["a cat", "", '  "a dog" and a bird  ', "   ", "# a hash: a sign", '""', "é"]
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "some.txt").write_text("\ufeff" + "\n".join(lines) + "\n\n", encoding="utf-8")
    (tmp_path / "texts" / "base.yaml").write_text("prompts: some.txt\n")
    (tmp_path / "own.yaml").write_text("base: texts/base.yaml\n")
    (tmp_path / "listed.yaml").write_text("base: texts/base.yaml\nprompts: [a tree]\n")
    prompts = ["a cat", '"a dog" and a bird', "# a hash: a sign", "", "é"]
    assert read_recipe(tmp_path / "own.yaml").settings == {"prompts": prompts}
    assert read_recipe(tmp_path / "listed.yaml").settings == {"prompts": ["a tree"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), (b"\n \n", "holds no prompts"), (b"\xff", "cannot be read")],
)
def test_a_file_of_prompts_that_is_none(content: bytes | None, message: str, recipe: Path) -> None:
    file = recipe.with_name("some.txt")
    if content is not None:
        file.write_bytes(content)
    recipe.write_text(f"{GOOD}prompts: some.txt\n")
    with pytest.raises(RecipeError) as caught:
        load(recipe)
    assert str(caught.value).startswith(f"recipe {recipe}: prompts: file {file} {message}")


def test_the_miniature_has_the_same_prompts_everywhere() -> None:
    prompts = {
        name: recipe_of(RECIPES / "mini" / f"{name}.yaml").prompts for name in ("flow", "nouns", "distill", "step")
    }
    assert len(set(prompts.values())) == 1
    assert len(prompts["flow"]) == 24
    assert (prompts["flow"][0], prompts["flow"][-1]) == ("a cat", "")


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1e999"])
@pytest.mark.parametrize(
    ("recipe", "key"),
    [
        ("mini/flow", "train.learning_rate"),
        ("mini/flow", "train.weight_decay"),
        ("mini/flow", "train.skip_factor"),
        ("mini/flow", "train.gradient_clip"),
        ("mini/flow", "timesteps.mean"),
        ("mini/flow", "guidance_scale"),
        ("mini/flow", "data.mixture.single"),
        ("mini/step", "adversary.weight"),
        ("mini/autoencoder", "weights.l1"),
        ("mini/text", "state_noise"),
    ],
)
def test_every_number_is_finite(recipe: str, key: str, value: str) -> None:
    with pytest.raises(RecipeError, match=rf"{key.split('.')[-1]}.*finite number"):
        recipe_of(RECIPES / f"{recipe}.yaml", f"{key}={value}")


def test_no_setting_escapes_from_the_check_of_its_numbers() -> None:
    """Each class of settings keeps the configuration of the base class."""
    for name in STAGES:
        load_stage(name)
    classes = [Settings]
    for kind in classes:
        classes += kind.__subclasses__()
    assert len(classes) > 20
    assert [kind.__name__ for kind in classes if kind.model_config.get("allow_inf_nan", True)] == []
