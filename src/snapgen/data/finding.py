"""Finds the files of a data set, and counts what is skipped on the way."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path

HIDDEN = "hidden files and macOS's companions"  # a cause to skip a file, in the words of the report
IRREGULAR = "links to nothing, pipes and devices"

logger = logging.getLogger(__name__)


class Skipped:
    """What was skipped, by cause: how often, and the first name."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._first: dict[str, str] = {}

    def add(self, cause: str, name: str | Path) -> None:
        """Counts `name`; `cause` is a plural, such as "pictures without a caption"."""
        self._counts[cause] = self._counts.get(cause, 0) + 1
        self._first.setdefault(cause, str(name))

    def report(self, place: Path) -> None:
        """Warns in one line of what was skipped in `place`, if anything; of the same only once per process."""
        found = [f"{cause} ({count}, first {self._first[cause]})" for cause, count in self._counts.items()]
        if found:
            _warn_once(f"{place}: skipped {', '.join(found)}")


@cache
def _warn_once(text: str) -> None:
    logger.warning(text)


def is_hidden(name: str) -> bool:
    """Whether files and folders of this name are for programs, not for people: `.x`, `._x`, `__MACOSX`."""
    return name == "__MACOSX" or (name.startswith(".") and name not in (".", ".."))


def find_files(folder: Path, suffixes: Collection[str], skipped: Skipped) -> list[Path]:
    """The regular files below `folder` with one of these suffixes, in lower or upper case, sorted by path.

    Links to files and folders are followed, but not back into a folder around them. Nothing is opened.
    """
    found = []
    for entry in _entries(folder, (), skipped):
        path = Path(entry)
        if path.suffix.lower() not in suffixes:
            continue
        if is_hidden(path.name):
            skipped.add(HIDDEN, path.relative_to(folder))
        elif not entry.is_file():
            skipped.add(IRREGULAR, path.relative_to(folder))
        else:
            found.append(path)
    return sorted(found)


def _entries(folder: str | Path, around: tuple[str, ...], skipped: Skipped) -> Iterator[os.DirEntry[str]]:
    """Everything below `folder` that is no folder; `around`: the real paths of the folders that contain it."""
    real = os.path.realpath(folder)
    if real in around:
        return
    try:
        entries = list(os.scandir(folder))
    except OSError:
        skipped.add("folders that cannot be read", folder)
        return
    for entry in entries:
        if not entry.is_dir():
            yield entry
        elif not is_hidden(entry.name):
            yield from _entries(entry.path, (*around, real), skipped)
