"""Shows the progress of verbs on standard error: bars on a terminal, plain lines at intervals elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from snapgen.messages import Counter


@contextmanager
def progress_bar(description: str, total: int, unit: str) -> Iterator[Callable[[], None]]:
    """Yield a function that counts one of `total` `unit`s as done, and shows it."""
    if not sys.stderr.isatty():
        yield Counter(show_message, description, total, unit).advance
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
    """Yield `items` while it is shown how many of `total` are done: a `snapgen.messages.Progress`."""
    with progress_bar(description, total, "items") as advance:
        for item in items:
            yield item
            advance()


def show_message(message: str) -> None:
    """Print `message` on standard error."""
    typer.echo(message, err=True)


@contextmanager
def continuable(folder: Path, how: str) -> Iterator[None]:
    """Work that fills `folder`: if it is stopped, a line says where the finished part is and `how` to continue."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if folder.is_dir():
            files = sum(1 for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
            show_message(f"{folder} holds {files} files so far; {how} continues")
        raise
