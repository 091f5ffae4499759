"""Captioned pictures in a folder: a few of your own, or ImageNet's classes.

With `template`, a picture's caption is made from the name of its folder ("a photo of {}", as the paper words
ImageNet's classes). Otherwise captions come from `metadata.jsonl` (`{"file_name": ..., "text": ...}`, the convention
of Hugging Face's datasets), else from a text file beside each picture (`cat.jpg`, `cat.txt`).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from pydantic import field_validator

from snapgen.config import RecipeError
from snapgen.data.files import PICTURES, FileSettings, FileSource, header_size
from snapgen.files import parse_json
from snapgen.messages import Progress, silent

READERS = 16  # threads; reading headers is mostly waiting
METADATA = "metadata.jsonl"


class FolderSettings(FileSettings):
    """The `data:` section of a recipe that reads pictures from a folder."""

    source: Literal["folder"]
    template: str | None = None  # caption of a class, "{}" stands for its name; null: captions come from files
    class_names: Path | None = None  # lines such as "n01440764 tench, Tinca tinca": a folder's class; first name used

    @field_validator("template")
    @classmethod
    def _has_a_place(cls, template: str | None) -> str | None:
        if template is not None and template.count("{}") != 1:
            raise ValueError("'{}' must stand once where the name of the class belongs")
        return template

    def open(self, progress: Progress = silent) -> FolderSource:
        """The source; `progress` shows slow work."""
        return FolderSource(self, progress)


class FolderSource(FileSource):
    """The source "folder": the pictures below `path` at any depth, sorted by name."""

    settings: FolderSettings

    def __init__(self, settings: FolderSettings, progress: Progress = silent) -> None:
        """`progress` is shown while picture sizes are read (only buckets need them)."""
        super().__init__(settings)
        if not settings.path.is_dir():
            raise RecipeError(f"data.path: folder {settings.path} does not exist")
        files = sorted(path for path in settings.path.rglob("*") if path.suffix.lower() in PICTURES)
        if not files:
            raise RecipeError(f"data.path: {settings.path} holds no pictures ({', '.join(sorted(PICTURES))})")
        kept = settings.kept(len(files))
        self.files = files[kept.start : kept.stop]
        self._captions = self._read_captions()
        self._progress = progress

    def __len__(self) -> int:
        return len(self.files)

    def signature(self) -> Any:
        """The settings that decide the shapes, and every file's name, size and modification time."""
        files = [(path.as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in self.files]
        return self.shape_signature() | {"files": files}

    def name(self, index: int) -> str:
        """The path of picture `index`."""
        return str(self.files[index])

    def open(self, index: int) -> BinaryIO:
        """The file of picture `index`."""
        return self.files[index].open("rb")

    def sizes(self) -> np.ndarray:
        """Widths and heights of all pictures in px (N 2)."""
        with ThreadPoolExecutor(READERS) as pool:
            sizes = self._progress(pool.map(_file_size, self.files), "reading sizes", len(self.files))
            return np.array(list(sizes))

    def caption(self, index: int, variant: int) -> str:
        """The caption of picture `index`; there is only one wording."""
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
            lines = [parse_json(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
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


def _file_size(path: Path) -> tuple[int, int]:
    try:
        with path.open("rb") as file:
            return header_size(file)
    except OSError:
        return 0, 0
