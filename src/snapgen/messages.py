"""Text for people: one-line errors, progress, intervals and Markdown tables."""

from __future__ import annotations

import reprlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pydantic import ValidationError


Item = TypeVar("Item")
QUIET_SECONDS = 15.0  # between two lines about the same work
Notify = Callable[[str], object]  # shows one line to whoever waits
Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]  # (items, description, total) -> the same items, shown


def silent(items: Iterable[Any], description: str, total: int) -> Iterable[Any]:
    """The `Progress` that shows nothing."""
    return items


class Counter:
    """Counts what is done of some work, and sends `notify` a line about it every `QUIET_SECONDS`, none for less."""

    def __init__(self, notify: Notify, description: str, total: int, unit: str = "") -> None:
        self.notify, self.description, self.total, self.unit = notify, description, total, unit
        self.done, self.started = 0, time.monotonic()
        self.shown = self.started

    def advance(self) -> None:
        """Counts one more as done."""
        self.done += 1
        now = time.monotonic()
        if now - self.shown >= QUIET_SECONDS:
            self.shown = now
            rate = self.done / (now - self.started)
            left = timedelta(seconds=round(max(self.total - self.done, 0) / rate))
            units = f" {self.unit}" if self.unit else ""
            self.notify(f"{self.description} {self.done}/{self.total}{units}  {rate:.3g}/s  {left} left")


def counted(items: Iterable[Item], notify: Notify, description: str, total: int) -> Iterator[Item]:
    """Yields `items` and counts them with a `Counter`."""
    counter = Counter(notify, description, total)
    for item in items:
        yield item
        counter.advance()


def one_line(message: object, limit: int | None = None) -> str:
    """`message`, an exception or a text, on one line, cut to at most `limit` characters."""
    return " ".join(str(message).split())[:limit]


def first_mistake(error: ValidationError) -> str:
    """The first mistake that pydantic found, in one line: its place, what is expected and what was given."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])[:100]
    given = one_line(reprlib.repr(first["input"]), 200)
    return f"{place}{': ' if place else ''}{one_line(first['msg'], 200).lower()} (given: {given})"


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table; a column may have an empty name."""
    head = ["|" + "".join(f" {name} |" if name else " |" for name in columns), "|" + "---|" * len(columns)]
    return head + ["| " + " | ".join(row) + " |" for row in rows]


def between(interval: Sequence[float] | None, form: str) -> str:
    """`interval` as text, its ends in the format `form`; "" if it is None."""
    return "" if interval is None else f"{interval[0]:{form}} to {interval[1]:{form}}"
