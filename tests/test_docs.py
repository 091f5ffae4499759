"""What the documents promise is there."""

import re
import shlex
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest

from snapgen.cli.main import run
from snapgen.config import parse_recipe, read_recipe
from snapgen.evaluation import SUITES
from snapgen.train.stages import load_stage

ROOT = Path(__file__).parents[1]
PAPER_MAP = (ROOT / "docs" / "paper-map.md").read_text()
NAMES = sorted(set(re.findall(r"`(snapgen(?:\.\w+)+)`", PAPER_MAP)))


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_the_paper_map_exists(name: str) -> None:
    parts = name.split(".")
    for split in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:split]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[split:]:
            found = getattr(found, attribute)
        return


def test_the_paper_map_is_complete() -> None:
    sections = re.split(r"^## ", PAPER_MAP, flags=re.MULTILINE)[1:]
    rows = {section.split("\n")[0]: re.findall(r"^\| (\d+) \|", section, flags=re.MULTILINE) for section in sections}
    numbers = [str(number) for number in range(1, 10)]
    assert rows == {"Equations": numbers, "Figures": numbers, "Tables": numbers[:3]}


def test_the_two_commands_of_the_readme_exist_and_ci_runs_the_tests() -> None:
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    commands = re.findall(r"^make (\w+)", readme, flags=re.MULTILINE)
    assert commands[:2] == ["picture", "test"]
    for command in commands:
        assert re.search(rf"^{command}:", makefile, flags=re.MULTILINE)
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "make test"


def test_the_recipes_of_the_data_guide_can_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its settings are accepted and their pictures found, those that it packs too."""
    guide = (ROOT / "docs" / "data.md").read_text().replace("\\\n", " ")
    commands = [shlex.split(line) for line in re.findall(r"^snapgen .*", guide, flags=re.MULTILINE)]
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    sources = []
    for _, verb, *arguments in commands:
        if verb == "data":
            assert run([verb, *arguments]) == 0
        else:
            overrides = [value for option, value in pairwise(arguments) if option == "--set"]
            mapping = read_recipe(ROOT / arguments[0], overrides)
            recipe = parse_recipe(load_stage(mapping["stage"]).recipe_type, mapping, "docs/data.md")
            sources.append((recipe.data.source, len(recipe.data.open())))
    assert sources == [("folder", 8), ("shards", 10), ("folder", 10), ("folder", 10), ("scenes", 64)]


def test_the_commands_of_the_evaluation_guide_ask_for_nothing_but_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Suites and options are accepted: each command gets as far as the first file or model that is not there."""
    guide = (ROOT / "docs" / "evaluation.md").read_text().replace("\\\n", " ")
    commands = [shlex.split(line) for line in re.findall(r"^snapgen .*", guide, flags=re.MULTILINE)]
    assert {name for command in commands for name in command[command.index("--suite") + 1].split(",")} == set(SUITES)
    monkeypatch.chdir(tmp_path)
    for command in commands:
        assert run(command[1:]) == 1
        assert re.search("does not exist|there is no model 'MODEL'", capfd.readouterr().err)
