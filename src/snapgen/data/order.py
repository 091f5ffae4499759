"""The order of training: which pictures are in each micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class MicroBatch:
    """The pictures of one global micro-batch, all of one shape."""

    pictures: np.ndarray  # indices, B
    epochs: np.ndarray  # how often each was seen before, B
    group: int  # the index of their group in `groups`


class InOrder:
    """Global micro-batches of pictures that need no shuffling, as they have nothing in common with their neighbours."""

    def __init__(self, count: int, batch: int) -> None:
        """`count`: pictures; `batch`: pictures in a global micro-batch."""
        self.groups = [np.arange(count)]
        self.batch = batch

    def micro_batch(self, step: int) -> MicroBatch:
        """The pictures of micro-batch `step`, counted from 0."""
        epochs, pictures = np.divmod(np.arange(step * self.batch, (step + 1) * self.batch), len(self.groups[0]))
        return MicroBatch(pictures, epochs, 0)


class Order:
    """Global micro-batches as a function of (seed, step), whatever the number of processes and interruptions.

    Each group (pictures of one shape) is an endless row: all of its pictures, shuffled anew for every epoch.
    Micro-batches are cut from the rows one after the other. A remainder at the end of an epoch opens the group's first
    micro-batch of the next epoch, so every picture of a group is seen once before any is seen again. An epoch
    is the micro-batches that its pictures complete, of all groups, shuffled.
    """

    def __init__(self, groups: Sequence[np.ndarray], batch: int, seed: int) -> None:
        """`groups`: the indices of the pictures of each shape; `batch`: pictures in a global micro-batch."""
        self.groups = [group for group in groups if len(group)]
        self.batch = batch
        self.seed = seed
        self._sizes = np.array([len(group) for group in self.groups], dtype=np.int64)
        # The last epoch used, and the group of each of its steps; for each group, its last epoch and its order.
        self._shuffled: tuple[int, np.ndarray] = (-1, np.empty(0))
        self._permuted = [(-1, np.empty(0))] * len(self.groups)

    def micro_batch(self, step: int) -> MicroBatch:
        """The pictures of micro-batch `step`, counted from 0."""
        epoch = step * self.batch // int(self._sizes.sum())  # or a later one: remainders wait
        while self._completed(epoch + 1).sum() <= step:
            epoch += 1
        before = self._completed(epoch)
        if self._shuffled[0] != epoch:
            row = np.repeat(np.arange(len(self.groups)), self._completed(epoch + 1) - before)
            self._shuffled = (epoch, np.random.default_rng((self.seed, epoch, len(self.groups))).permutation(row))
        place = step - int(before.sum())
        group = int(self._shuffled[1][place])
        number = int(before[group]) + int(np.count_nonzero(self._shuffled[1][:place] == group))
        epochs, places = np.divmod(np.arange(number * self.batch, (number + 1) * self.batch), self._sizes[group])
        rows = [self._permutation(group, int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)]
        return MicroBatch(np.concatenate(rows), epochs, group)

    def _completed(self, epochs: int) -> np.ndarray:
        """For each group, the number of micro-batches that fit into its first `epochs` epochs."""
        return epochs * self._sizes // self.batch

    def _permutation(self, group: int, epoch: int) -> np.ndarray:
        if self._permuted[group][0] != epoch:
            # numpy's streams do not depend on trailing zeros: the first group's is that of (seed, epoch).
            rng = np.random.default_rng((self.seed, epoch, group))
            self._permuted[group] = (epoch, rng.permutation(self.groups[group]))
        return self._permuted[group][1]
