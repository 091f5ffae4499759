"""Latents of a source's pictures: cached in files before training, or encoded as training needs them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from snapgen.data.order import Order
from snapgen.data.rows import CacheFiles, Rows
from snapgen.data.source import BadSampleError, Source
from snapgen.messages import Notify, Progress
from snapgen.pictures import to_tensor

SHARD = 1024  # pictures
BATCH = 32  # pictures read at once, and encoded at once if they are small
PIXELS = BATCH * 256**2  # pixels encoded at once: SD3's encoder needs 1.3 GB for a picture of 1024 px
AHEAD = 2  # batches that are read while another one is encoded and trained on

Encode = Callable[[Tensor], Tensor]  # pictures B 3 H W in [-1, 1] -> latents B C h w
Item = TypeVar("Item")
Result = TypeVar("Result")


def pictures_at_once(height: int, width: int) -> int:
    """How many pictures of this size (px) are encoded together."""
    return max(1, min(BATCH, PIXELS // (height * width)))


def encode_in_parts(encode: Encode, pictures: Sequence[np.ndarray]) -> Tensor:
    """Latents of `pictures` (uint8 H W 3, all of one size), encoded `pictures_at_once` at a time."""
    size = pictures_at_once(*pictures[0].shape[:2])
    parts = [list(pictures[start : start + size]) for start in range(0, len(pictures), size)]
    return torch.cat([encode(to_tensor(part)) for part in parts])


def read_ahead(
    pool: ThreadPoolExecutor, read: Callable[[Item], Result], batches: Iterable[Iterable[Item]]
) -> Iterator[list[Result]]:
    """Yields `read(item)` of every item, batch by batch in order; the threads of `pool` stay `AHEAD` batches ahead."""
    waiting: deque[list[Future[Result]]] = deque()
    for batch in batches:
        waiting.append([pool.submit(read, item) for item in batch])
        if len(waiting) > AHEAD:
            yield [future.result() for future in waiting.popleft()]
    for futures in waiting:
        yield [future.result() for future in futures]


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
        self.source = source
        self.encode = encode
        self.order = Order(source.groups(), batch, seed)
        self.warn = warn
        self._pool = ThreadPoolExecutor(workers)
        self._named: set[int] = set()
        self._due: tuple[int, slice] | None = None  # what `_stream` yields next
        self._stream: Iterator[list[tuple[int, int, np.ndarray]]] = iter(())

    @torch.no_grad()
    def __call__(self, step: int, own: slice) -> LatentBatch:
        if self._due != (step, own):
            self._stream = read_ahead(self._pool, self._read, (self._items(number, own) for number in count(step)))
        self._due = (step + 1, own)
        pictures, epochs, images = zip(*next(self._stream), strict=True)
        return LatentBatch(encode_in_parts(self.encode, images), list(pictures), list(epochs))

    def _items(self, step: int, own: slice) -> list[tuple[int, int, int]]:
        """Picture, epoch and group of each sample."""
        chosen = self.order.micro_batch(step)
        pairs = zip(chosen.pictures[own].tolist(), chosen.epochs[own].tolist(), strict=True)
        return [(picture, epoch, chosen.group) for picture, epoch in pairs]

    def _read(self, item: tuple[int, int, int]) -> tuple[int, int, np.ndarray]:
        picture, epoch, group = item
        members = self.order.groups[group]
        start = int(np.searchsorted(members, picture))
        for candidate in map(int, chain(members[start:], members[:start])):
            try:
                return candidate, epoch, self.source.image(candidate)
            except BadSampleError as error:
                if candidate not in self._named:
                    self._named.add(candidate)
                    self.warn(f"{error}; the next one stands in for it")
        raise ValueError(f"none of the {len(members)} pictures of one shape can be read")


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
