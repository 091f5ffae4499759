"""What the documents promise is there."""

import re
from importlib import import_module
from pathlib import Path

import pytest

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
