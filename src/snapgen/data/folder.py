"""Pictures in a folder, with captions: one's own few, or ImageNet's classes.

Captions come from `metadata.jsonl` (`{"file_name": ..., "text": ...}`, the convention of Hugging Face's datasets),
else from a text file beside each picture (`cat.jpg`, `cat.txt`), else, with `template`, from the name of the folder
that a picture lies in ("a photo of {}", as the paper words ImageNet's classes).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import Field, field_validator

from snapgen.config import RecipeError, Settings
from snapgen.data import BadSampleError

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
METADATA = "metadata.jsonl"


class FolderSettings(Settings):
    """The `data:` section of a recipe that reads pictures from a folder."""

    source: Literal["folder"]
    path: Path
    resolution: int = Field(ge=32, multiple_of=8)  # side that pictures are scaled and cut to, px
    template: str | None = None  # caption of a class, "{}" stands for its name; None: captions come from files
    class_names: Path | None = None  # lines "n01440764 tench, Tinca tinca": names of folders; the first name counts
    held_out: int = Field(default=0, ge=0)  # pictures, the last by name, that only the held-out loss sees
    part: Literal["train", "held out"] = "train"

    @field_validator("template")
    @classmethod
    def _has_a_place(cls, template: str | None) -> str | None:
        if template is not None and template.count("{}") != 1:
            raise ValueError("'{}' must stand once where the name of the class belongs")
        return template

    def validation(self, count: int) -> FolderSettings:
        """The held-out pictures; those trained on if none are held out."""
        return self.model_copy(update={"part": "held out" if self.held_out else "train"})


class FolderSource:
    """The source "folder": pictures in order of their names, below `path` at any depth."""

    def __init__(self, settings: FolderSettings) -> None:
        self.settings = settings
        if not settings.path.is_dir():
            raise RecipeError(f"data.path: folder {settings.path} does not exist")
        files = sorted(path for path in settings.path.rglob("*") if path.suffix.lower() in PICTURES)
        if not files:
            raise RecipeError(f"data.path: {settings.path} holds no pictures ({', '.join(sorted(PICTURES))})")
        if settings.held_out >= len(files):
            raise RecipeError(f"data.held_out {settings.held_out} leaves none of {len(files)} pictures to train on")
        kept = len(files) - settings.held_out
        self.files = files[:kept] if settings.part == "train" else files[kept:]
        self._captions = self._read_captions()

    def __len__(self) -> int:
        return len(self.files)

    def signature(self) -> Any:
        """The resolution, and every file's name, size and time of change."""
        files = [(path.as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in self.files]
        return {"resolution": self.settings.resolution, "files": files}

    def image(self, index: int) -> np.ndarray:
        """Picture `index`, its middle square; transparent parts are white. BadSampleError if it cannot be read."""
        path, side = self.files[index], self.settings.resolution
        try:
            with Image.open(path) as file:
                picture = ImageOps.exif_transpose(file).convert("RGBA")
        except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError) as error:
            raise BadSampleError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
        paper = Image.new("RGBA", picture.size, "white")
        opaque = Image.alpha_composite(paper, picture).convert("RGB")
        return np.asarray(ImageOps.fit(opaque, (side, side), Image.Resampling.LANCZOS))

    def caption(self, index: int, variant: int) -> str:
        """The caption of picture `index`; there is one wording."""
        return self._captions[index]

    def _read_captions(self) -> list[str]:
        if self.settings.template is not None:
            return self._class_captions(self.settings.template)
        written = self._metadata()
        captions = []
        for path in self.files:
            beside = path.with_suffix(".txt")
            if path.relative_to(self.settings.path).as_posix() in written:
                captions.append(written[path.relative_to(self.settings.path).as_posix()])
            elif beside.is_file():
                captions.append(beside.read_text(encoding="utf-8").strip())
            else:
                raise RecipeError(
                    f"data.path: {path} has no caption: expected {beside.name} beside it, a line in {METADATA}, "
                    "or data.template"
                )
        return captions

    def _metadata(self) -> dict[str, str]:
        path = self.settings.path / METADATA
        if not path.is_file():
            return {}
        try:
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            return {str(line["file_name"]): str(line["text"]) for line in lines}
        except (ValueError, KeyError, TypeError) as error:
            raise RecipeError(
                f'{path} is damaged: lines {{"file_name": ..., "text": ...}} expected ({error})'
            ) from None

    def _class_captions(self, template: str) -> list[str]:
        names: dict[str, str] = {}
        if self.settings.class_names is not None:
            try:
                lines = self.settings.class_names.read_text(encoding="utf-8").splitlines()
            except OSError as error:
                raise RecipeError(f"data.class_names cannot be read: {error}") from None
            names = {folder: rest.split(",")[0].strip() for folder, _, rest in (line.partition(" ") for line in lines)}
        return [template.format(names.get(path.parent.name, path.parent.name)) for path in self.files]
