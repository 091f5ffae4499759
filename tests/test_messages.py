"""What people read: errors in one line, intervals, Markdown tables."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from snapgen.config import TrainSettings
from snapgen.messages import Counter, between, counted, first_mistake, markdown_table, one_line, silent


def test_errors_become_one_line() -> None:
    assert one_line(ValueError("first\n  second\tthird ")) == "first second third"
    assert one_line("first\nsecond", limit=8) == "first se"
    assert one_line("") == ""


def test_a_table_has_a_rule_of_as_many_columns() -> None:
    assert markdown_table(("name", "steps"), [("base", "28"), ("few", "4")]) == [
        "| name | steps |",
        "|---|---|",
        "| base | 28 |",
        "| few | 4 |",
    ]
    assert markdown_table(["one"], []) == ["| one |", "|---|"]


def test_intervals_are_read_aloud() -> None:
    assert between((0.0649, 0.176), ".1%") == "6.5% to 17.6%"
    assert between(None, ".1%") == ""


def test_silence_passes_the_items_on() -> None:
    items = iter([1, 2])
    assert silent(items, "measuring", 2) is items


def test_work_is_counted_at_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    """30 items that take four seconds each, with a line after every fourth: 16 seconds."""
    clock, lines = [100.0], list[str]()
    monkeypatch.setattr("snapgen.messages.time.monotonic", lambda: clock[0])
    for _ in counted(range(30), lines.append, "judging", 30):
        clock[0] += 4
    assert len(lines) == 30 // 4
    assert lines[0] == "judging 4/30  0.25/s  0:01:44 left"
    counter = Counter(lines.append, "generating", 2, "steps")
    counter.advance()
    assert len(lines) == 30 // 4
    clock[0] += 20
    counter.advance()
    assert lines[-1] == "generating 2/2 steps  0.1/s  0:00:00 left"


def test_the_first_of_several_mistakes() -> None:
    with pytest.raises(ValidationError) as caught:
        TrainSettings(steps="many" * 1000, batch_size=0, learning_rate=1.0)
    message = first_mistake(caught.value)
    assert message.startswith("steps: input should be a valid integer (given: 'many") and len(message) < 100
