"""What people read: errors in one line, intervals, Markdown tables."""

from __future__ import annotations

from snapgen.messages import between, markdown_table, one_line, silent


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
