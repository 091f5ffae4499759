"""Rows of tensors spread over many files, read as one sequence, and the cache files that hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from snapgen.files import remove_leftovers
from snapgen.weights import load_file, save_file_atomic

LEFT = 3600.0  # seconds after which a half-written file counts as abandoned: other processes may still be writing


class Rows:
    """The rows of `parts`, one part after the other; from memory-mapped parts only the requested rows are read."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = parts
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def locate(self, number: int) -> tuple[int, int]:
        """The part that holds row `number`, and the row's place in it."""
        if not 0 <= number < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        part = int(np.searchsorted(self._ends, number, side="right"))
        return part, number - int(self._ends[part]) + len(self.parts[part])

    def __getitem__(self, number: int) -> Tensor:
        part, place = self.locate(number)
        return self.parts[part][place]


class CacheFiles:
    """The files `<name>_00000.safetensors`, ... in a folder, each with up to `size` items of one group.

    Processes share the writing: process r of n writes every n-th file. A file appears only when it is complete, so an
    interrupted build continues with the missing files.
    """

    def __init__(self, folder: Path, name: str, groups: Sequence[np.ndarray], size: int) -> None:
        self.folder = folder
        self.name = name
        self.shards = [
            (number, group[start : start + size])
            for number, group in enumerate(groups)
            for start in range(0, len(group), size)
        ]

    def _path(self, shard: int) -> Path:
        return self.folder / f"{self.name}_{shard:05d}.safetensors"

    def missing(self, rank: int, world: int) -> list[int]:
        """The files that process `rank` of `world` still has to write; also removes leftovers of a killed build."""
        remove_leftovers(self.folder, LEFT)
        return [shard for shard in range(rank, len(self.shards), world) if not self._path(shard).exists()]

    def save(self, shard: int, tensors: Mapping[str, Tensor]) -> None:
        """Writes one file."""
        save_file_atomic(tensors, self._path(shard))

    def load(self, *names: str) -> list[dict[str, Tensor]]:
        """The tensors `names` of all files, memory-mapped, as many rows of each; ValueError naming a damaged file."""
        parts = []
        for shard in range(len(self.shards)):
            found = load_file(self._path(shard))
            part = {name: found[name] for name in names if name in found and found[name].ndim > 0}
            if part.keys() != set(names) or len({len(tensor) for tensor in part.values()}) != 1:
                raise ValueError(f"{self._path(shard)} is damaged: rows of {', '.join(names)} are expected; remove it")
            parts.append(part)
        return parts
