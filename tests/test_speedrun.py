"""The speedrun's records and its page."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def speedrun(benchmark: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = benchmark("speedrun")
    monkeypatch.setattr(module, "PAGE", tmp_path / "speedrun.md")
    return module


def record_of(speedrun: ModuleType, name: str, against: str | None, score: float, text: Path | None) -> dict[str, Any]:
    options = Namespace(name=name, against=against, minutes=20.0, set=[], autoencoder=None, text=text)
    model = {"score": score, "interval": [score - 0.1, score + 0.1], "categories": {"single": score}, "count": 120}
    model |= {"second_judge": 0.5, "distance": 1.25, "truth": 0.9}
    stage = {"stage": "flow", "steps": 100, "batch_size": 32, "samples": 3200, "seconds": 60.0, "loss": 0.1}
    report = {"models": [model], "autoencoder": {"psnr": 33.0}, "stages": [stage], "device": "a computer"}
    metrics = [
        {"step": 50, "eval/heldout": 0.9, "eval/binding/two": 0.5},
        {"step": 100, "eval/heldout": 0.5, "eval/binding/two": 0.75, "eval/binding/color": 0.95, "eval/rise/two": 0.1},
        {"step": 101, "loss": 0.4},
    ]
    return speedrun.make_record(options, report, metrics)


def test_a_record_holds_the_last_evaluation(speedrun: ModuleType) -> None:
    record = record_of(speedrun, "as it is", None, 0.25, Path("text"))
    assert (record["heldout"], record["binding"]) == (0.5, {"two": 0.75, "color": 0.95})
    assert record["given"] == ["text"] and record["stages"]["flow"] == {"steps": 100, "samples": 3200, "seconds": 60.0}
    assert json.loads(json.dumps(record)) == record


def test_the_page_has_a_table_for_each_setting(speedrun: ModuleType) -> None:
    records = [
        record_of(speedrun, "as it is", None, 0.25, None),
        record_of(speedrun, "AdamW", "as it is", 0.2, None),
        record_of(speedrun, "as it is, on given text", None, 0.3, Path("text")),
    ]
    speedrun.write_page(records)
    page = speedrun.PAGE.read_text()
    assert page.index("## 20 minutes, from nothing") < page.index("## 20 minutes, given text")
    assert (
        "| AdamW | as it is | 3,200 | 20.0% (10% to 30% of 120) | 50.0% | 1.250 | 33.00 | 0.5000 | 85%, 75% |" in page
    )
