"""What the benchmarks share, and their results as they lie there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bundle_scores
import decoder_search
import decoder_shapes
import operators
import peers
import pytest
import runtimes
import shared
import throughput
import web_app
from matplotlib.figure import Figure

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def test_results_are_a_json_file_a_page_and_a_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared.write_results(tmp_path / "new" / "peers_1.5", {"rows": [1]}, "# page", Figure())
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        f"peers_1.5.{kind}" for kind in ("json", "md", "png")
    ]
    assert json.loads((tmp_path / "new" / "peers_1.5.json").read_text()) == {"rows": [1]}
    assert (tmp_path / "new" / "peers_1.5.md").read_text() == "# page\n" == capsys.readouterr().out
    assert (tmp_path / "new" / "peers_1.5.png").read_bytes().startswith(b"\x89PNG")


def test_a_page_names_its_script() -> None:
    assert shared.page("/a/b/peers.py", "two cores", ["| a |"]).splitlines() == [
        "<!-- python benchmarks/peers.py -->",
        "two cores",
        "",
        "| a |",
    ]


def test_facts_of_the_machine() -> None:
    facts = shared.machine_facts("cpu", "accelerate")
    assert list(facts) == ["device", "threads", "system", "versions"]
    assert {"python", "torch", "snapgen", "accelerate"} <= facts["versions"].keys()
    assert "accelerate" not in shared.machine_facts()["versions"]


def test_every_script_writes_into_the_same_folder_by_default() -> None:
    assert shared.make_parser("help").parse_args([]).out == Path("benchmarks/results")
    assert shared.make_parser("help").parse_args(["--out", "x"]).out == Path("x")


@pytest.mark.parametrize(
    ("name", "page"),
    [
        ("decoder_search_150", decoder_search.table),
        ("decoder_search_350", decoder_search.table),
        ("decoder_shapes", decoder_shapes.table),
        ("peers_cpu", peers.table),
        ("operators_cpu", operators.summary),
        ("throughput_cpu", throughput.table),
        ("runtimes", runtimes.table),
        ("web_app", web_app.table),
        ("bundle_scores", bundle_scores.table),
    ],
)
def test_a_page_is_what_its_script_makes_of_the_numbers(name: str, page: Callable[[dict[str, Any]], str]) -> None:
    """No number in a page was changed by hand."""
    report = json.loads((RESULTS / f"{name}.json").read_text())
    assert (RESULTS / f"{name}.md").read_text() == page(report) + "\n"


def test_neither_scripts_nor_benchmarks_import_the_command_line() -> None:
    root = RESULTS.parents[1]
    files = [*(root / "benchmarks").glob("*.py"), *(root / "scripts").glob("*.py")]
    assert len(files) > 10
    imports = re.compile(r"^\s*(from|import) snapgen\.cli|from snapgen import .*\bcli\b", re.MULTILINE)
    assert [file.name for file in files if imports.search(file.read_text())] == []
