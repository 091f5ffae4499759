"""The report of a reproduction, as Markdown; that of the bundled models is compared with the README elsewhere."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest
from support.recipes import RECIPES

from snapgen.reproduce.plan import Plan, stage_recipe
from snapgen.reproduce.report import Report, card, scenes_of, stage_lines, write_report

DEBUG = RECIPES / "debug"


@pytest.fixture
def report() -> Report:
    """That of the bundled models."""
    content: Report = json.loads(files("snapgen").joinpath("bundled", "report.json").read_text())
    return content


def test_the_categories_that_a_model_gets_right(report: Report) -> None:
    categories = report["models"][-1]["categories"]
    categories |= {"single": 0.5, "color": 0.49} | dict.fromkeys(("counting", "two", "position", "attribution"), 0.6)
    assert card(report)[-1] == (
        "Of the categories, the last model gets right more often than not: single, counting, two, position, "
        "attribution. More often wrong: color."
    )
    categories.update(dict.fromkeys(categories, 0.0))
    assert "more often than not: nothing. More often wrong: single, color" in card(report)[-1]


def test_a_stage_without_a_heldout_loss_or_time(report: Report) -> None:
    late = report["stages"][0] | {"stage": "text", "steps": 4, "samples": 16, "seconds": 90.0, "loss": 1.25}
    report["stages"] = [late | {"heldout": None, "late": True}]
    table = stage_lines(report)
    assert table[2] == "| text | 4 | 16 | 1.5 | 1.25 |  |"
    assert table[-1] == "No time was left for text: the fewest steps were trained."


def test_both_files_are_written(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for picture in ("flow/plots/loss.png", "flow/samples/step_1.png", "flow/samples/step_2.png"):
        (tmp_path / picture).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / picture).touch()
    write_report(report)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    page = (tmp_path / "report.md").read_text()
    assert page.startswith("# mini, made from mini-base\n\nTrained on ")
    assert "## flow\n\n![loss](flow/plots/loss.png)\n![step_2](flow/samples/step_2.png)\n\n## step\n" in page
    assert page.endswith("![sheet](evaluation/step/scenes/sheet.png)\n")


def test_only_scenes_are_scored() -> None:
    plan = Plan(name="debug", minutes=1.0, stages=("text", "flow"))
    assert scenes_of(stage_recipe(DEBUG, plan, "flow")).source == "scenes"
    with pytest.raises(ValueError, match="reproduce scores scenes only"):
        scenes_of(stage_recipe(DEBUG, plan, "text"))
