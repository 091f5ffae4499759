"""Reads the pictures of the next batches while training is busy with another."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, count
from typing import Generic, TypeVar

import numpy as np

from snapgen.data.order import InOrder, Order
from snapgen.data.source import BadSampleError, Source
from snapgen.messages import Notify

AHEAD = 2  # batches that are read while another one is used

Item = TypeVar("Item")
Result = TypeVar("Result")


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
class Sample:
    """One sample of a batch."""

    number: int  # counted from the start of training, over all processes
    picture: int  # index in the source
    epoch: int  # how often the picture was seen before
    image: np.ndarray  # the picture, uint8 H W 3


class PictureBatches(Generic[Result]):
    """The samples of each micro-batch, read ahead by threads; what a step gets depends on the order alone.

    A picture that cannot be read is replaced by the next one of its group; `warn` names it once.
    """

    def __init__(
        self,
        source: Source,
        order: Order | InOrder,
        prepare: Callable[[Sample], Result],
        workers: int,
        warn: Notify,
    ) -> None:
        """`prepare` makes of each sample what the batch holds of it, in one of `workers` threads."""
        self.source = source
        self.order = order
        self.prepare = prepare
        self.warn = warn
        self._pool = ThreadPoolExecutor(workers)
        self._named: set[int] = set()
        self._due: tuple[int, slice] | None = None  # what `_stream` yields next
        self._stream: Iterator[list[Result]] = iter(())

    def __call__(self, step: int, own: slice) -> list[Result]:
        """The part `own` of global micro-batch `step`."""
        if self._due != (step, own):
            self._stream = read_ahead(self._pool, self._read, (self._items(number, own) for number in count(step)))
        self._due = (step + 1, own)
        return next(self._stream)

    def readable(self, picture: int, group: int = 0) -> tuple[int, np.ndarray]:
        """`picture`, or the next one of `group` that can be read: its index and itself."""
        members = self.order.groups[group]
        start = int(np.searchsorted(members, picture))
        for candidate in map(int, chain(members[start:], members[:start])):
            try:
                return candidate, self.source.image(candidate)
            except BadSampleError as error:
                if candidate not in self._named:
                    self._named.add(candidate)
                    self.warn(f"{error}; the next one stands in for it")
        raise ValueError(f"none of the {len(members)} pictures of one shape can be read")

    def _items(self, step: int, own: slice) -> list[tuple[int, int, int, int]]:
        """Number, picture, epoch and group of each sample."""
        chosen = self.order.micro_batch(step)
        numbers = range(step * len(chosen.pictures), (step + 1) * len(chosen.pictures))[own]
        samples = zip(numbers, chosen.pictures[own].tolist(), chosen.epochs[own].tolist(), strict=True)
        return [(*sample, chosen.group) for sample in samples]

    def _read(self, item: tuple[int, int, int, int]) -> Result:
        number, picture, epoch, group = item
        candidate, image = self.readable(picture, group)
        return self.prepare(Sample(number, candidate, epoch, image))
