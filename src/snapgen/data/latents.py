"""A cache of latents: every picture of a source encoded once, in shards, before training on them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snapgen.data import BadSampleError, Source
from snapgen.data.pictures import to_tensor
from snapgen.weights import load_file, save_file_atomic

SHARD = 1024  # pictures
BATCH = 32  # pictures encoded at once

Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]


def fingerprint(*parts: Any) -> str:
    """Twelve hexadecimal digits that change with any of `parts` (JSON values, or bytes)."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode())
    return digest.hexdigest()[:12]


class LatentCache:
    """Latents of the pictures 0 .. len(source) of a source, fp16, as shards `latents_00000.safetensors` in a folder.

    Processes build it together: process r of n encodes every n-th shard; `load` reads what all have written.
    An interrupted build goes on with the shards that are missing.
    """

    def __init__(self, source: Source, folder: Path) -> None:
        self.source = source
        self.folder = folder
        self.shards = -(-len(source) // SHARD)

    def _path(self, shard: int) -> Path:
        return self.folder / f"latents_{shard:05d}.safetensors"

    @torch.no_grad()
    def build(
        self,
        encode: Callable[[Tensor], Tensor],
        rank: int,
        world: int,
        progress: Progress,
        warn: Callable[[str], object],
    ) -> None:
        """Write this process's missing shards. `encode`: pictures B 3 H W in [-1, 1] -> latents B C h w.

        Pictures that cannot be read are left out, and named to `warn`.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        missing = [shard for shard in range(rank, self.shards, world) if not self._path(shard).exists()]
        for shard in progress(missing, "encoding pictures", len(missing)):
            indices = range(shard * SHARD, min((shard + 1) * SHARD, len(self.source)))
            latents, kept = [], []
            for start in range(indices.start, indices.stop, BATCH):
                pictures = []
                for index in range(start, min(start + BATCH, indices.stop)):
                    try:
                        pictures.append(self.source.image(index))
                        kept.append(index)
                    except BadSampleError as error:
                        warn(f"{error}; it is left out")
                if pictures:
                    latents.append(encode(to_tensor(pictures)).half().cpu())
            if not latents:
                raise ValueError(f"none of the pictures {indices.start} to {indices.stop - 1} can be read")
            save_file_atomic({"latents": torch.cat(latents), "indices": torch.tensor(kept)}, self._path(shard))

    def load(self) -> tuple[Tensor, Tensor]:
        """The latents of all pictures that could be read, fp16, N C h w, and the pictures' indices, N."""
        shards = [load_file(self._path(shard)) for shard in range(self.shards)]
        return torch.cat([shard["latents"] for shard in shards]), torch.cat([shard["indices"] for shard in shards])
