"""Metrics, curves and progress lines."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from support.regression import make_recipe

from snapgen.train.report import Display, Report, plot_metrics, read_metrics, smooth


def test_recording_continues_at_the_checkpoint(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines = [{"step": step, "loss": 1.0, "grad_norm": 1.0, "learning_rate": 0.1} for step in (1, 2, 3)]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "lo')
    report = Report(tmp_path, make_recipe({"log_every": 4}).train, 2, Display(enabled=True))
    for step in (3, 4):
        record = {"loss": 0.5, "grad_norm": 0.0, "learning_rate": 0.1, "eval/score": math.nan}
        report.step(step, record, seconds=2.0)
    report.plot()
    report.close()
    assert [(line["step"], line["loss"]) for line in read_metrics(path)] == [(1, 1.0), (2, 1.0), (3, 0.5), (4, 0.5)]
    assert read_metrics(path)[-1]["eval/score"] is None  # JSON has no NaN
    assert capfd.readouterr().err == "step 4/12  loss 0.5  4.0 samples/s  0:00:16 left\n"


def test_curves_choose_a_logarithmic_axis_by_the_range() -> None:
    def scale(losses: list[float]) -> str:
        lines = [{"step": i, "loss": loss, "grad_norm": 1.0, "learning_rate": 0.1} for i, loss in enumerate(losses)]
        return plot_metrics(lines).axes[0].get_yscale()

    assert scale([1.0, 0.5]) == "linear"
    assert scale([1.0, 0.05]) == "log"
    assert scale([1.0, -0.05]) == "linear"


def test_smoothing_is_unbiased() -> None:
    assert smooth([2.0] * 5, window=3) == pytest.approx([2.0] * 5)
    assert smooth([1.0, 4.0], window=1) == [1.0, 4.0]
    assert smooth([0.0, 3.0], window=2) == pytest.approx([0.0, 2.0])  # (0 * 1/4 + 3 * 1/2) / (3/4)


def test_steps_left_out_are_gaps_in_the_curves() -> None:
    assert smooth([2.0, float("nan"), 2.0], window=3) == pytest.approx([2.0] * 3)
    lines = [
        {"step": i, "loss": loss, "grad_norm": loss, "learning_rate": 0.1} for i, loss in enumerate([1.0, None, 0.5])
    ]
    raw = plot_metrics(lines).axes[0].lines[0].get_ydata()
    assert [value == value for value in raw] == [True, False, True]


def test_curves_by_noise_level_gather_in_one_file(tmp_path: Path) -> None:
    report = Report(tmp_path, make_recipe().train, 0, Display(enabled=False))
    report.timesteps(1, {})
    assert not (tmp_path / "timesteps.jsonl").exists()
    for step in (2, 4, 6, 4):  # the second 4 is a resume from before it: what came after is dropped
        report.timesteps(step, {"sigma": [0.25, 0.75], "loss": [1.0 / step, 0.5]})
    report.close()
    assert [line["step"] for line in read_metrics(tmp_path / "timesteps.jsonl")] == [2, 4]
    assert (tmp_path / "plots" / "timesteps.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("enabled", [True, False])
def test_tracking_passes_items_on(enabled: bool) -> None:
    display = Display(enabled)
    assert list(display.track(range(5), "encoding", 5)) == [0, 1, 2, 3, 4]
    display.close()


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes standard error for a terminal
    monkeypatch.setenv("COLUMNS", "120")
    display = Display(enabled=True)
    report = Report(tmp_path, make_recipe().train, 0, display)
    report.step(1, {"loss": 0.25, "grad_norm": 1.0, "learning_rate": 0.1}, seconds=0.5)
    assert list(display.track(range(3), "encoding", 3)) == [0, 1, 2]  # a second bar under the first
    display.close()
    report.close()
    errors = capfd.readouterr().err
    assert "loss 0.25" in errors
    assert "16.0 samples/s" in errors


def test_evaluations_of_one_kind_share_a_panel_ideals_dashed_among_what_is_measured_by_them() -> None:
    values = {"eval/heldout": 0.4, "eval/binding/two": 0.6, "eval/rise/two": 0.1, "eval/ideal/two": 0.2}
    lines = [{"step": i, "loss": 0.5, "grad_norm": 1.0, "learning_rate": 0.1, **values} for i in range(2)]
    panels = [{line.get_label(): line.get_linestyle() for line in axes.lines} for axes in plot_metrics(lines).axes]
    assert {"eval/heldout": "-"} in panels and {"eval/binding/two": "-"} in panels
    assert {"eval/rise/two": "-", "eval/ideal/two": "--"} in panels


@pytest.mark.parametrize("line", ['{"step": 3, "lo', "[" * 100_000, "3", "[]", "{}", '{"step": "3"}', "\xff"])
def test_metrics_end_at_a_damaged_line(line: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n' + line.encode("latin-1") + b'\n{"step": 4}\n')
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]
    assert read_metrics(tmp_path / "nothing.jsonl") == []
