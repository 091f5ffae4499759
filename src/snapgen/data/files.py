"""Users' own picture files: what the sources "folder" and "shards" have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self

import numpy as np
from PIL import Image, ImageOps
from pydantic import Field, model_validator

from snapgen.config import RecipeError, Settings
from snapgen.data.buckets import BucketSettings, bucket_sizes, nearest_buckets
from snapgen.data.source import BadSampleError
from snapgen.messages import one_line
from snapgen.pictures import read_rgb

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})


class FileSettings(Settings):
    """What the `data:` sections of these sources have in common."""

    path: Path
    resolution: int = Field(ge=32, multiple_of=8)  # px; pictures are scaled and cropped to squares of this side
    buckets: BucketSettings | None = None  # crop to sizes of about that area instead; null: squares
    held_out: int = Field(default=0, ge=0)  # number of pictures, the last in order, kept for the held-out loss
    part: Literal["train", "held out"] = "train"

    @model_validator(mode="after")
    def _square_is_a_bucket(self) -> Self:
        if self.buckets is not None and self.resolution % self.buckets.step:
            raise ValueError(f"resolution {self.resolution} is no multiple of buckets.step {self.buckets.step}")
        return self

    def validation(self, count: int) -> Self:
        """The held-out pictures as squares; the training pictures if none are held out."""
        return self.model_copy(update={"part": "held out" if self.held_out else "train", "buckets": None})

    def kept(self, count: int) -> range:
        """Which of `count` pictures belong to this part."""
        if self.held_out >= count:
            raise RecipeError(f"data.held_out {self.held_out} leaves none of {count} pictures to train on")
        return range(count)[: count - self.held_out] if self.part == "train" else range(count)[count - self.held_out :]


class FileSource(ABC):
    """A source that decodes pictures on demand; each is scaled to cover its bucket, then cropped to its centre."""

    def __init__(self, settings: FileSettings) -> None:
        self.settings = settings

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """Where picture `index` is stored, for messages."""

    @abstractmethod
    def open(self, index: int) -> BinaryIO:
        """The encoded picture `index`."""

    @abstractmethod
    def sizes(self) -> np.ndarray:
        """Widths and heights of all pictures in px (N 2), as `picture_size` returns them."""

    def image(self, index: int) -> np.ndarray:
        """Picture `index`, as `read_rgb` reads it, cropped. BadSampleError if it cannot be read."""
        try:
            with self.open(index) as file:
                picture = read_rgb(file)
        except (OSError, ValueError) as error:
            raise BadSampleError(f"{self.name(index)} cannot be read: {one_line(error)}") from error
        return np.asarray(ImageOps.fit(picture, self.shape(index), Image.Resampling.LANCZOS))

    def shape(self, index: int) -> tuple[int, int]:
        """Width and height in px that picture `index` is cropped to."""
        if self._buckets is None:
            return self.settings.resolution, self.settings.resolution
        sizes, numbers = self._buckets
        return sizes[numbers[index]]

    def groups(self) -> list[np.ndarray]:
        """The indices of the pictures of each bucket."""
        if self._buckets is None:
            return [np.arange(len(self))]
        sizes, numbers = self._buckets
        return [np.flatnonzero(numbers == number) for number in range(len(sizes))]

    def shape_signature(self) -> dict[str, Any]:
        """The settings that decide the pictures' shapes, for `signature`."""
        buckets = self.settings.buckets
        shapes = {} if buckets is None else {"buckets": buckets.model_dump(mode="json")}
        return {"resolution": self.settings.resolution} | shapes

    @cached_property
    def _buckets(self) -> tuple[list[tuple[int, int]], np.ndarray] | None:
        """The buckets' sizes, and the index of each picture's bucket."""
        if self.settings.buckets is None:
            return None
        sizes = bucket_sizes(self.settings.resolution, self.settings.buckets)
        return sizes, nearest_buckets(self.sizes(), sizes)
