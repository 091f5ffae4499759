"""What the documents promise is there."""

import re
import shlex
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from snapgen.cli.main import run
from snapgen.evaluation import SUITES
from snapgen.train.stages import load_recipe

ROOT = Path(__file__).parents[1]
PAPER_MAP = (ROOT / "docs" / "paper-map.md").read_text()
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "apps/README.md", "src/snapgen/bundled/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
FOLDERS = "src|apps|recipes|docs|benchmarks|scripts|tests|examples"


def text_of(page: Path) -> str:
    """The text of `page`; without the code that makes new files (`tests/test_extending.py` runs it)."""
    text = page.read_text()
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL) if page.stem == "extending" else text


def names_in(text: str) -> list[str]:
    return sorted(set(re.findall(r"(?<![\w/.-])(snapgen(?:\.[A-Za-z_]\w*)+)", text)))


def paths_in(text: str) -> list[str]:
    return sorted(set(re.findall(rf"(?<![\w/.-])((?:{FOLDERS})/[\w./*-]*\w)", text)))


def exists(name: str) -> bool:
    """Whether the dotted `name` can be imported."""
    parts = name.split(".")
    for split in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:split]))
        except ModuleNotFoundError:
            continue
        return all((found := getattr(found, attribute, None)) is not None for attribute in parts[split:])
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_names_exists(page: Path) -> None:
    """Modules and what is in them, files and folders, and the targets of links."""
    text = text_of(page)
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    missing = [name for name in names_in(text) if not exists(name)]
    missing += [path for path in paths_in(text) if not any(ROOT.glob(path))]
    missing += [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_a_name_or_path_that_is_gone_would_be_found() -> None:
    text = "`snapgen.data.scenes` and (snapgen.flow.path.interpolate), `src/snapgen/data/scenes.py`; recipes/debug."
    assert [(name, exists(name)) for name in names_in(text)] == [
        ("snapgen.data.scenes", False),
        ("snapgen.flow.path.interpolate", True),
    ]
    assert paths_in(text) == ["recipes/debug", "src/snapgen/data/scenes.py"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_to_headings_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors


def test_every_page_and_every_benchmark_is_listed() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    assert [
        page.name for page in (ROOT / "docs").glob("*.md") if page.name not in index and page.name != "README.md"
    ] == []
    listed = (ROOT / "docs" / "benchmarks.md").read_text()
    scripts = [file.name for file in (ROOT / "benchmarks").glob("*.py") if '"__main__"' in file.read_text()]
    results = (ROOT / "benchmarks" / "results").rglob("*.md")
    names = [*scripts, *(file.relative_to(ROOT / "benchmarks" / "results").as_posix() for file in results)]
    assert [name for name in names if name not in listed] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


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
            recipe: Any = load_recipe(ROOT / arguments[0], overrides)
            sources.append((recipe.data.source, len(recipe.data.open())))
    assert sources == [("folder", 8), ("shards", 10), ("folder", 10), ("folder", 10), ("scenes", 64)]


def test_the_commands_of_the_evaluation_guide_ask_for_nothing_but_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Suites and options are accepted: each command gets as far as the first file or model that is not there."""
    guide = (ROOT / "docs" / "evaluation.md").read_text().replace("\\\n", " ")
    commands = [shlex.split(line) for line in re.findall(r"^snapgen evaluate .*", guide, flags=re.MULTILINE)]
    assert {name for command in commands for name in command[command.index("--suite") + 1].split(",")} == set(SUITES)
    monkeypatch.chdir(tmp_path)
    for command in commands:
        assert run(command[1:]) == 1
        assert re.search("does not exist|there is no model 'MODEL'", capfd.readouterr().err)
