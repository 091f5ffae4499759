"""Shows the progress of verbs on standard error, only if it is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import typer


@contextmanager
def progress_bar(description: str, total: int, unit: str) -> Iterator[Callable[[], None]]:
    """Yield a function that advances a bar of `total` `unit`s by one; without a terminal it does nothing."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class RateColumn(ProgressColumn):
        """Units per second, once some are done."""

        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.1f} {unit}/s" if task.speed else "")

    columns = (TextColumn(description), BarColumn(), MofNCompleteColumn(), RateColumn(), TimeRemainingColumn())
    # Leave standard output alone: it carries the file names.
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as progress:
        task = progress.add_task(description, total=total)
        yield lambda: progress.advance(task)


def show_items(items: Iterable[Any], description: str, total: int) -> Iterator[Any]:
    """Yield `items` while a bar shows how many of `total` are done: a `snapgen.messages.Progress`."""
    with progress_bar(description, total, "items") as advance:
        for item in items:
            yield item
            advance()


def show_message(message: str) -> None:
    """Print `message` on standard error, if it is a terminal."""
    if sys.stderr.isatty():
        typer.echo(message, err=True)
