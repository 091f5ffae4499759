"""Text for people: one-line errors, progress, intervals and Markdown tables."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError

Notify = Callable[[str], object]  # shows one line to whoever waits
Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]  # (items, description, total) -> the same items, shown


def silent(items: Iterable[Any], description: str, total: int) -> Iterable[Any]:
    """The `Progress` that shows nothing."""
    return items


def one_line(message: object, limit: int | None = None) -> str:
    """`message`, an exception or a text, on one line, cut to at most `limit` characters."""
    return " ".join(str(message).split())[:limit]


def first_mistake(error: ValidationError) -> str:
    """The first mistake that pydantic found, in one line: its place, what is expected and what was given."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])[:100]
    return (
        f"{place}{': ' if place else ''}{one_line(first['msg'], 200).lower()} (given: {reprlib.repr(first['input'])})"
    )


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table; a column may have an empty name."""
    head = ["|" + "".join(f" {name} |" if name else " |" for name in columns), "|" + "---|" * len(columns)]
    return head + ["| " + " | ".join(row) + " |" for row in rows]


def between(interval: Sequence[float] | None, form: str) -> str:
    """`interval` as text, its ends in the format `form`; "" if it is None."""
    return "" if interval is None else f"{interval[0]:{form}} to {interval[1]:{form}}"
