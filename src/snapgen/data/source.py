"""The interface of a source: what every collection of captioned pictures offers to training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np


class BadSampleError(ValueError):
    """A picture that cannot be read; the message names it."""


class Source(Protocol):
    """A deterministic, indexable collection of captioned pictures."""

    def __len__(self) -> int:
        """The number of pictures; indices run from 0 up to this, exclusive."""
        ...

    def image(self, index: int) -> np.ndarray:
        """Picture `index`, uint8 H W 3, sRGB; depends on (settings, index) alone. Raises `BadSampleError`."""
        ...

    def groups(self) -> list[np.ndarray]:
        """The indices of all pictures, grouped by shape; a group may be empty."""
        ...

    def signature(self) -> Any:
        """A JSON value that changes whenever a picture may have changed."""
        ...

    def caption(self, index: int, variant: int) -> str:
        """One caption of picture `index`; `variant` (any integer >= 0) picks the wording."""
        ...


class Contrast(Protocol):
    """A picture, a caption of it, and the same caption with one mistake."""

    @property
    def kind(self) -> str:
        """The kind of mistake."""
        ...

    @property
    def picture(self) -> np.ndarray:
        """The picture, uint8 H W 3."""
        ...

    @property
    def right(self) -> str:
        """The right caption."""
        ...

    @property
    def wrong(self) -> str:
        """The caption with the mistake."""
        ...

    @property
    def like_right(self) -> Sequence[np.ndarray]:
        """Other pictures that match the right caption."""
        ...

    @property
    def like_wrong(self) -> Sequence[np.ndarray]:
        """Pictures that match the wrong caption, otherwise like those of `like_right`."""
        ...


@runtime_checkable
class ContrastingSource(Protocol):
    """A source that can put mistakes into its captions, because it knows what they say."""

    def contrasts(self, count: int, alike: int) -> Sequence[Contrast]:
        """`count` contrasts of every kind, always the same, each with `alike` (>= 2) more pictures per caption."""
        ...


@runtime_checkable
class WordedSource(Protocol):
    """A source that can list the words of its captions."""

    def words(self) -> dict[str, list[str]]:
        """All words that a caption can contain, by kind."""
        ...


@runtime_checkable
class RandomSource(Protocol):
    """A source whose pictures are random as they come, so that training may take them in the order of their indices."""

    @property
    def is_random(self) -> Literal[True]:
        """Neighbours have nothing in common."""
        ...


def first_readable(source: Source, count: int) -> tuple[list[int], list[np.ndarray]]:
    """Indices and pictures of the first `count` readable pictures, repeated from the first if there are fewer.

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
