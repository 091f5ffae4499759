"""Captioned pictures to train on. A source is one file here and one line in `SOURCES`."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Protocol

import numpy as np

SOURCES = {  # the recipe's `data.source` -> module:class, imported when opened
    "scenes": "snapgen.data.scenes:SceneSource",
    "folder": "snapgen.data.folder:FolderSource",
}


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

    def signature(self) -> Any:
        """A JSON value that changes when any picture may have."""
        ...

    def caption(self, index: int, variant: int) -> str:
        """One paraphrase of what the picture shows; `variant` (any integer >= 0) picks the wording."""
        ...


def open_source(settings: Any) -> Source:
    """The source that `settings.source` names, for example of a `SceneSettings`."""
    try:
        module, _, name = SOURCES[settings.source].partition(":")
    except KeyError:
        raise ValueError(f"unknown data source {settings.source!r}, expected one of {', '.join(SOURCES)}") from None
    source: Source = getattr(import_module(module), name)(settings)
    return source
