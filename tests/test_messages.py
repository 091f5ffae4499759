"""What people read: errors in one line, intervals, Markdown tables."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from snapgen.config import TrainSettings
from snapgen.messages import between, first_mistake, markdown_table, one_line, silent


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


def test_the_first_of_several_mistakes() -> None:
    with pytest.raises(ValidationError) as caught:
        TrainSettings(steps="many" * 1000, batch_size=0, learning_rate=1.0)
    message = first_mistake(caught.value)
    assert message.startswith("steps: input should be a valid integer (given: 'many") and len(message) < 100
