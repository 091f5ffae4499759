"""Latents of a source's pictures: cached in files before training, or encoded as training needs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from snapgen.data.order import Order
from snapgen.data.reading import PictureBatches, read_ahead
from snapgen.data.rows import CacheFiles, Rows
from snapgen.data.source import BadSampleError, Source
from snapgen.messages import Notify, Progress
from snapgen.pictures import to_tensor

SHARD = 1024  # pictures
BATCH = 32  # pictures read at once, and encoded at once if they are small
PIXELS = BATCH * 256**2  # pixels encoded at once: SD3's encoder needs 1.3 GB for a picture of 1024 px

Encode = Callable[[Tensor], Tensor]  # pictures B 3 H W in [-1, 1] -> latents B C h w


def pictures_at_once(height: int, width: int) -> int:
    """How many pictures of this size (px) are encoded together."""
    return max(1, min(BATCH, PIXELS // (height * width)))


def encode_in_parts(encode: Encode, pictures: Sequence[np.ndarray]) -> Tensor:
    """Latents of `pictures` (uint8 H W 3, all of one size), encoded `pictures_at_once` at a time."""
    size = pictures_at_once(*pictures[0].shape[:2])
    parts = [list(pictures[start : start + size]) for start in range(0, len(pictures), size)]
    return torch.cat([encode(to_tensor(part)) for part in parts])


@dataclass(frozen=True)
class LatentBatch:
    """One process's share of a micro-batch."""

    latents: Tensor  # B C h w, normalised, fp32
    pictures: list[int]  # indices in the source
    epochs: list[int]  # how often each picture was seen before: picks the variant of its caption


class Batches(Protocol):
    """Where training gets its latents."""

    def __call__(self, step: int, own: slice) -> LatentBatch:
        """The part `own` of global micro-batch `step`; depends on these two alone."""
        ...


@dataclass(frozen=True)
class StoredLatents:
    """The contents of a finished cache; latents are read from disk when used."""

    latents: Rows  # each C h w, fp16
    indices: np.ndarray  # index in the source of each row's picture
    groups: list[np.ndarray]  # rows of the same shape, which are stored together
    name: str  # name of the cache's folder


class CachedBatches:
    """`Batches` from a cache."""

    def __init__(self, stored: StoredLatents, batch: int, seed: int) -> None:
        """`batch`: pictures in a global micro-batch."""
        self.stored = stored
        self.order = Order(stored.groups, batch, seed)

    def __call__(self, step: int, own: slice) -> LatentBatch:
        chosen = self.order.micro_batch(step)
        rows = chosen.pictures[own]
        latents = torch.stack([self.stored.latents[row] for row in rows.tolist()]).float()
        return LatentBatch(latents, self.stored.indices[rows].tolist(), chosen.epochs[own].tolist())


class EncodedBatches:
    """`Batches` for data too large to cache: threads read pictures ahead, and each batch is encoded when it is due.

    A picture that cannot be read is replaced by the next one of its shape; `warn` names it once.
    """

    def __init__(
        self,
        source: Source,
        encode: Encode,
        batch: int,
        seed: int,
        workers: int,
        warn: Notify,
    ) -> None:
        """`batch`: pictures in a global micro-batch; `workers`: threads."""
        self.encode = encode
        self.order = Order(source.groups(), batch, seed)
        self.samples = PictureBatches(source, self.order, lambda sample: sample, workers, warn)

    @torch.no_grad()
    def __call__(self, step: int, own: slice) -> LatentBatch:
        samples = self.samples(step, own)
        latents = encode_in_parts(self.encode, [sample.image for sample in samples])
        return LatentBatch(latents, [sample.picture for sample in samples], [sample.epoch for sample in samples])


class LatentCache:
    """A folder of shards `latents_00000.safetensors` with the fp16 latents of all pictures of a source.

    Every process calls `build`; once all are done, `load` opens the result.
    """

    def __init__(self, source: Source, folder: Path) -> None:
        self.source = source
        self.folder = folder
        self.files = CacheFiles(folder, "latents", source.groups(), SHARD)

    @torch.no_grad()
    def build(
        self,
        encode: Encode,
        rank: int,
        world: int,
        progress: Progress,
        warn: Notify,
        workers: int = 1,
    ) -> None:
        """Writes this process's missing shards; `workers` threads read the pictures.

        Pictures that cannot be read are skipped; `warn` names them.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        missing = self.files.missing(rank, world)
        with ThreadPoolExecutor(workers) as pool:
            for shard in progress(missing, "encoding pictures", len(missing)):
                indices = self.files.shards[shard][1].tolist()
                batches = [indices[start : start + BATCH] for start in range(0, len(indices), BATCH)]
                latents, kept = [], []
                for results in read_ahead(pool, self._attempt, batches):
                    pictures = []
                    for index, result in results:
                        if isinstance(result, BadSampleError):
                            warn(f"{result}; it is skipped")
                        else:
                            kept.append(index)
                            pictures.append(result)
                    if pictures:
                        latents.append(encode_in_parts(encode, pictures).half().cpu())
                if not latents and len(indices) == SHARD:
                    raise ValueError(f"none of the pictures {indices[0]} to {indices[-1]} can be read")
                encoded = torch.cat(latents) if latents else torch.empty(0, dtype=torch.float16)
                numbers = torch.tensor(kept, dtype=torch.int64)
                self.files.save(shard, {"latents": encoded, "indices": numbers})

    def _attempt(self, index: int) -> tuple[int, np.ndarray | BadSampleError]:
        try:
            return index, self.source.image(index)
        except BadSampleError as error:
            return index, error

    def load(self) -> StoredLatents:
        """The latents of all readable pictures; ValueError if there are none, or if a shard is damaged."""
        parts = self.files.load("latents", "indices")
        for part, (_, own) in zip(parts, self.files.shards, strict=True):
            if not np.isin(part["indices"].numpy(), own).all():
                raise ValueError(f"{self.folder} holds latents of other pictures than the source has: remove it")
        numbers = np.repeat([number for number, _ in self.files.shards], [len(part["indices"]) for part in parts])
        if not len(numbers):
            raise ValueError("none of the pictures can be read")
        groups = [np.flatnonzero(numbers == number) for number in np.unique(numbers)]
        indices = np.concatenate([part["indices"].numpy() for part in parts])
        return StoredLatents(Rows([part["latents"] for part in parts]), indices, groups, self.folder.name)
