"""What every source of captioned pictures offers to training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np


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


class Contrast(Protocol):
    """A picture, a caption of it, and the same caption made wrong in one point."""

    @property
    def kind(self) -> str:
        """Of the point."""
        ...

    @property
    def picture(self) -> np.ndarray:
        """uint8 H W 3."""
        ...

    @property
    def right(self) -> str:
        """The caption."""
        ...

    @property
    def wrong(self) -> str:
        """The caption made wrong."""
        ...

    @property
    def like_right(self) -> Sequence[np.ndarray]:
        """Other pictures that the right caption describes."""
        ...

    @property
    def like_wrong(self) -> Sequence[np.ndarray]:
        """And the wrong one: the same but for the point."""
        ...


@runtime_checkable
class ContrastingSource(Protocol):
    """A source that knows what its captions say, and can make them wrong."""

    def contrasts(self, count: int, alike: int) -> Sequence[Contrast]:
        """`count` of every kind, always the same, each with `alike` (at least 2) other pictures of either caption."""
        ...


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
