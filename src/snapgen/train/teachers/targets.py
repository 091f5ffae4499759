"""Stores a teacher's targets: its outputs for every picture under a few fixed random choices, computed once and reused.

A random choice sets a sample's noise and noise level, its caption, and what is dropped; a recipe's `draws` is their
number. Choice `k` of a picture is the same in every run, whatever the seed, so a second student, an ablation or a
further pass over the choices costs nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, ValidationError
from torch import Tensor

from snapgen.config import RecipeError, Settings
from snapgen.data.latents import StoredLatents
from snapgen.data.rows import CacheFiles, Rows
from snapgen.files import atomic_file, read_json, sha256, short_fingerprint
from snapgen.messages import Progress, first_mistake
from snapgen.train.stage import Context
from snapgen.train.teachers.teacher import NetworkTeacher, SharedTextTeacher, Teacher
from snapgen.weights import load_file, save_file_atomic

LAST = -1  # the teacher's block whose features are matched (Eq. 5)
SHARD = 256  # samples per file; with SD3.5-Large's features at 1024 px a file has 5.2 GB
VELOCITY, FEATURES = "teacher_velocity", "teacher_features"  # in a batch and in files: B C H W and B D h w
SAMPLES = "samples"  # in files: a key of what each row was computed for, B


class Description(Settings):
    """The content of targets.json."""

    accepted: dict[str, list[Any]]  # the values that fit each key of what is asked for; none: all fit
    feature_width: int = Field(gt=0)


class StoredTeacher(Teacher):
    """A teacher whose targets are stored: they come with the batch."""

    def __init__(self, width: int) -> None:
        self.feature_widths = [width]

    def __call__(
        self,
        x: Tensor,
        sigmas: Tensor,
        batch: Mapping[str, Tensor],
        taps: tuple[int, ...] = (),
        guidance_scale: float = 1.0,
    ) -> tuple[Tensor, list[Tensor]]:
        """The stored velocity and features for the samples of `batch`."""
        return batch[VELOCITY].float(), [batch[FEATURES] for _ in taps]


def sample_keys(pictures: Sequence[int], captions: Sequence[str]) -> Tensor:
    """A number that identifies each pair of a picture and its caption, int64, B."""
    pairs = zip(pictures, captions, strict=True)
    return torch.tensor([int(short_fingerprint(picture, caption), 16) for picture, caption in pairs])


def weights_fingerprint(source: str, *patterns: str) -> str:
    """A fingerprint of the weights in the folder `source`; for a hub name, the name itself.

    The weights are those that the first matching pattern of `patterns` finds. A pipeline's autoencoder is skipped: the
    latents have a fingerprint of their own.
    """
    folder = Path(source)
    if not folder.is_dir():
        return source
    found = (sorted(file for file in folder.glob(pattern) if file.parent.name != "vae") for pattern in patterns)
    files = next(filter(None, found), [])
    return short_fingerprint([(file.relative_to(folder).as_posix(), sha256(file)) for file in files])


class StoredTargets:
    """The targets in a finished cache, read from disk as they are used."""

    def __init__(
        self, folder: Path, rows: Mapping[str, Rows], heldout: Mapping[str, Tensor], indices: np.ndarray
    ) -> None:
        """`rows`: for all random choices, one after the other; `indices`: the pictures that each has a row for."""
        self.folder = folder
        self.heldout = heldout
        self._rows = rows
        self._count = len(indices)
        self._places = np.zeros(int(indices.max()) + 1, dtype=np.int64)  # each picture's row within a choice
        self._places[indices] = np.arange(self._count)

    def __call__(self, pictures: list[int], draws: list[int], captions: list[str]) -> dict[str, Tensor]:
        """`VELOCITY` and, if loaded, `FEATURES` of samples; ValueError if the picture or caption is another one."""
        rows = (self._count * np.array(draws) + self._places[pictures]).tolist()
        found = {name: torch.stack([tensors[row] for row in rows]) for name, tensors in self._rows.items()}
        wrong = found.pop(SAMPLES) != sample_keys(pictures, captions)
        if wrong.any():
            picture = pictures[int(wrong.nonzero()[0])]
            raise ValueError(
                f"target_cache: the targets in {self.folder} are of another caption of picture {picture} than it has "
                "now: name another folder"
            )
        return found


class TargetCache:
    """The targets of all stored latents under `draws` random choices: shards `targets_00000.safetensors` in a folder.

    Beside them are those of the held-out batch, `heldout.safetensors`, and `targets.json`, which describes them.
    Processes build the cache together, one choice after another. Shards that are missing, after an interruption or with
    more `draws` than before, are added.
    """

    def __init__(self, folder: Path, stored: StoredLatents, draws: int) -> None:
        self.folder = folder
        self.stored = stored
        self.files = CacheFiles(folder, "targets", stored.groups * draws, SHARD)
        self._description = folder / "targets.json"
        self._heldout = folder / "heldout.safetensors"

    def check(self, asked: Mapping[str, Any]) -> None:
        """RecipeError if the folder holds targets for settings other than `asked`; it may be empty."""
        if not self._description.exists():
            if any(self.folder.glob("*.safetensors")):
                raise RecipeError(f"target_cache: {self.folder} holds files of something else: name another folder")
            return
        accepted = self._describe().accepted
        changed = [
            f"{key} ({', '.join(map(str, accepted[key]))} -> {value})"
            for key, value in asked.items()
            if accepted[key] and value not in accepted[key]
        ]
        if changed:
            raise RecipeError(
                f"target_cache: {self.folder} holds the targets of other settings: {'; '.join(changed)}; "
                "name another folder, or go back to those settings"
            )

    def create(self, accepted: Mapping[str, Sequence[Any]], width: int) -> None:
        """Writes the description of the targets, unless there is one.

        Args:
            accepted: the values that fit each key of `check`; none: all fit. "features" has True if they are kept.
            width: channels of the teacher's features, kept or not.
        """
        if not self._description.exists():
            with atomic_file(self._description) as temporary:
                temporary.write_text(json.dumps({"accepted": accepted, "feature_width": width}, indent=1))

    def _describe(self) -> Description:
        try:
            return Description.model_validate(read_json(self._description))
        except ValidationError as error:
            mistake = first_mistake(error)
            raise RecipeError(f"target_cache: {self._description} is damaged: {mistake}; name another folder") from None
        except ValueError as error:
            raise RecipeError(f"target_cache: {error}; name another folder") from None

    @property
    def width(self) -> int:
        """Channels of the teacher's features."""
        return self._describe().feature_width

    @property
    def keeps_features(self) -> bool:
        """Whether features are stored."""
        return True in self._describe().accepted["features"]

    def incomplete(self, rank: int, world: int) -> bool:
        """Whether process `rank` of `world` has anything to build."""
        return bool(self.files.missing(rank, world)) or (rank == 0 and not self._heldout.exists())

    @torch.no_grad()
    def build(
        self,
        teach: Callable[[list[int], Tensor, int], dict[str, Tensor]],
        heldout: Callable[[], dict[str, Tensor]],
        at_once: int,
        rank: int,
        world: int,
        progress: Progress,
    ) -> None:
        """Writes this process's missing shards, `at_once` samples at a time, and the first process `heldout`.

        `teach` returns a file's tensors for pictures, their latents B C H W and the number of a random choice.
        """
        if rank == 0 and not self._heldout.exists():
            save_file_atomic(heldout(), self._heldout)
        missing = self.files.missing(rank, world)
        for shard in progress(missing, "asking the teacher", len(missing)):
            group, rows = self.files.shards[shard]
            parts = []
            for start in range(0, len(rows), at_once):
                some = rows[start : start + at_once]
                latents = torch.stack([self.stored.latents[row] for row in some.tolist()]).float()
                parts.append(teach(self.stored.indices[some].tolist(), latents, group // len(self.stored.groups)))
            self.files.save(shard, {name: torch.cat([part[name] for part in parts]) for name in parts[0]})

    def load(self, features: bool) -> StoredTargets:
        """The targets that all processes have built, with or without features; ValueError naming a damaged file."""
        names = [SAMPLES, VELOCITY, *([FEATURES] if features else [])]
        parts = self.files.load(*names)
        rows = {name: Rows([part[name] for part in parts]) for name in names}
        return StoredTargets(self.folder, rows, load_file(self._heldout), self.stored.indices)


@dataclass(frozen=True)
class Asker:
    """How a stage computes targets that are not stored yet."""

    load: Callable[[], NetworkTeacher]  # called before the functions below
    # (taps, pictures, their latents B C h w, number of the random choice) -> the tensors of a file
    about_pictures: Callable[[tuple[int, ...], list[int], Tensor, int], dict[str, Tensor]]
    about_heldout: Callable[[tuple[int, ...]], dict[str, Tensor]]  # the held-out batch
    at_once: int  # samples, as many as in training, so that targets are the same to the last bit


def open_targets(
    cache: TargetCache, asked: Mapping[str, Any], name: str, asker: Asker, context: Context, wait: Callable[[], None]
) -> tuple[StoredTargets, StoredTeacher]:
    """The targets in `cache`, after computing missing ones; if none are missing, no teacher is loaded.

    Args:
        asked: what determines the targets, as `TargetCache.check` takes it.
        name: the teacher's name in the recipe, for when its folder is gone.
        wait: returns when all processes have called it.
    """
    rank, world = context.rank, context.world
    cache.check(asked)
    teacher = asker.load() if cache.incomplete(rank, world) else None
    if teacher is not None and rank == 0:
        accepted = {key: [value] for key, value in asked.items()} | {
            "teacher": sorted({asked["teacher"], name}),
            "text": [asked["text"]] if isinstance(teacher, SharedTextTeacher) else [],
            "features": [False, True] if asked["features"] else [False],
        }
        cache.create(accepted, teacher.feature_widths[LAST])
    wait()
    if teacher is not None:
        taps = (LAST,) if cache.keeps_features else ()
        cache.build(
            partial(asker.about_pictures, taps),
            partial(asker.about_heldout, taps),
            asker.at_once,
            rank,
            world,
            context.progress,
        )
    wait()
    return cache.load(asked["features"]), StoredTeacher(cache.width)
