"""Captioned pictures in a folder: a few of your own, or ImageNet's classes.

With `template`, a picture's caption is made from the name of its folder ("a photo of {}", as the paper words
ImageNet's classes). Otherwise captions come from `metadata.jsonl` (`{"file_name": ..., "text": ...}`, the convention
of Hugging Face's datasets; a list of texts means several captions), else from a text file beside each picture
(`cat.jpg`, `cat.txt`).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from pydantic import field_validator

from snapgen.config import RecipeError
from snapgen.data.captions import decode_caption, json_captions
from snapgen.data.files import PICTURES, FileSettings, FileSource
from snapgen.data.finding import Skipped, find_files
from snapgen.files import parse_json, read_lines
from snapgen.messages import Progress, silent
from snapgen.pictures import picture_size

READERS = 16  # threads; reading headers is mostly waiting
METADATA = "metadata.jsonl"
METADATA_LIMIT = 2**31  # bytes


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
    """The source "folder": the pictures below `path` at any depth, sorted by name.

    Hidden files, and pictures whose caption cannot be read, are skipped and counted.
    """

    settings: FolderSettings

    def __init__(self, settings: FolderSettings, progress: Progress = silent) -> None:
        """`progress` is shown while picture sizes are read (only buckets need them)."""
        super().__init__(settings)
        if not settings.path.is_dir():
            raise RecipeError(f"data.path: folder {settings.path} does not exist")
        skipped = Skipped()
        files = find_files(settings.path, PICTURES, skipped)
        if not files:
            skipped.report(settings.path)
            raise RecipeError(f"data.path: {settings.path} holds no pictures ({', '.join(sorted(PICTURES))})")
        settings.kept(len(files))  # a wrong setting shows before captions are read
        captions = self._read_captions(files, skipped)
        skipped.report(settings.path)
        if not captions:
            raise RecipeError(f"data.path: none of the {len(files)} pictures in {settings.path} has a readable caption")
        kept = settings.kept(len(captions))
        self.files = list(captions)[kept.start : kept.stop]
        self._captions = [captions[file] for file in self.files]
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
            sizes = self._progress(pool.map(picture_size, self.files), "reading sizes", len(self.files))
            return np.array(list(sizes))

    def caption(self, index: int, variant: int) -> str:
        """Caption `variant` of picture `index`, modulo the number of its captions."""
        texts = self._captions[index]
        return texts[variant % len(texts)]

    def captions(self, index: int) -> list[str]:
        """All captions of picture `index`."""
        return self._captions[index]

    def _read_captions(self, files: list[Path], skipped: Skipped) -> dict[Path, list[str]]:
        """The captions of each of `files` that has readable ones, in the same order."""
        if self.settings.template is not None:
            return self._class_captions(files, self.settings.template)
        written = self._metadata()
        captions: dict[Path, list[str]] = {}
        for path in files:
            name, beside = path.relative_to(self.settings.path).as_posix(), path.with_suffix(".txt")
            if name in written:
                if texts := json_captions(written[name]):
                    captions[path] = texts
                else:
                    skipped.add(f"pictures whose caption in {METADATA} is no text", name)
            elif beside.is_file():
                try:
                    captions[path] = [decode_caption(beside.read_bytes())]
                except ValueError:
                    skipped.add("captions that are not UTF-8", beside.relative_to(self.settings.path))
            else:
                raise RecipeError(
                    f"data.path: {path} has no caption: expected {beside.name} beside it, a line in {METADATA}, "
                    "or data.template"
                )
        return captions

    def _metadata(self) -> dict[str, Any]:
        """The JSON value of each picture's caption, by the picture's relative path."""
        path = self.settings.path / METADATA
        if not path.is_file():
            return {}
        try:
            lines = [parse_json(line) for line in read_lines(path, METADATA_LIMIT)]
            return {str(line["file_name"]): line["text"] for line in lines}
        except (ValueError, KeyError, TypeError) as error:
            raise RecipeError(
                f'{path} is damaged: lines {{"file_name": ..., "text": ...}} expected ({error})'
            ) from None

    def _class_captions(self, files: list[Path], template: str) -> dict[Path, list[str]]:
        names: dict[str, str] = {}
        if self.settings.class_names is not None:
            try:
                if not self.settings.class_names.is_file():
                    raise ValueError(f"{self.settings.class_names} is no file")
                lines = read_lines(self.settings.class_names)
            except (OSError, ValueError) as error:
                raise RecipeError(f"data.class_names cannot be read: {error}") from None
            names = {folder: rest.split(",")[0].strip() for folder, _, rest in (line.partition(" ") for line in lines)}
        return {path: [template.format(names.get(path.parent.name, path.parent.name))] for path in files}
