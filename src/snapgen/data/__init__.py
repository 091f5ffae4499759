"""Captioned pictures to train on. A source is one file here and one line in `SOURCES`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

import numpy as np

SOURCES = {  # the recipe's `data.source` -> module:class, imported when opened
    "scenes": "snapgen.data.scenes:SceneSource",
    "folder": "snapgen.data.folder:FolderSource",
    "shards": "snapgen.data.shards:ShardSource",
}

Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]  # (items, description, total) -> the same items, shown


def silent(items: Iterable[Any], description: str, total: int) -> Iterable[Any]:
    """The `Progress` that shows nothing."""
    return items


class BadSampleError(ValueError):
    """A picture that cannot be read; the message names it."""


class Source(Protocol):
    """A deterministic, indexable collection of captioned pictures."""

    def __len__(self) -> int:
        """Number of pictures; indices run from 0 to this, exclusive."""
        ...

    def image(self, index: int) -> np.ndarray:
        """uint8 H W 3, sRGB; a function of (settings, index) alone. Raises `BadSampleError`."""
        ...

    def groups(self) -> list[np.ndarray]:
        """The indices of all pictures, in groups of one shape; a group may be empty."""
        ...

    def signature(self) -> Any:
        """A JSON value that changes when any picture may have."""
        ...

    def caption(self, index: int, variant: int) -> str:
        """One paraphrase of what the picture shows; `variant` (any integer >= 0) picks the wording."""
        ...


@dataclass(frozen=True)
class Contrast:
    """A picture, a caption of it, and the same caption made wrong in one point."""

    kind: str  # of the point
    picture: np.ndarray  # uint8 H W 3
    right: str
    wrong: str
    like_right: list[np.ndarray]  # other pictures that the right caption describes
    like_wrong: list[np.ndarray]  # and the wrong one: the same but for the point


@runtime_checkable
class ContrastingSource(Protocol):
    """A source that knows what its captions say, and can make them wrong."""

    def contrasts(self, count: int, alike: int) -> list[Contrast]:
        """`count` of every kind, always the same, each with `alike` (at least 2) other pictures of either caption."""
        ...


def open_source(settings: Any, progress: Progress = silent) -> Source:
    """The source that `settings.source` names, for example of a `SceneSettings`; `progress` shows what takes long."""
    try:
        module, _, name = SOURCES[settings.source].partition(":")
    except KeyError:
        raise ValueError(f"unknown data source {settings.source!r}, expected one of {', '.join(SOURCES)}") from None
    source: Source = getattr(import_module(module), name)(settings, progress)
    return source


def first_readable(source: Source, count: int) -> tuple[list[int], list[np.ndarray]]:
    """Indices and pictures of the first `count` pictures that can be read, again from the first where there are fewer.

    ValueError if there are none.
    """
    found: list[tuple[int, np.ndarray]] = []
    for index in range(len(source)):
        if len(found) == count:
            break
        try:
            found.append((index, source.image(index)))
        except BadSampleError:
            continue
    if not found:
        raise ValueError(f"none of {len(source)} pictures can be read")
    chosen = [found[number % len(found)] for number in range(count)]
    return [index for index, _ in chosen], [picture for _, picture in chosen]
