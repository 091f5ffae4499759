"""The order of training: which pictures make up each micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class MicroBatch:
    """Pictures of one shape, for all processes."""

    pictures: np.ndarray  # their numbers, B
    epochs: np.ndarray  # how often each was seen before, B
    group: int  # which of `Order.groups` they are of


class Order:
    """Global micro-batches as a function of (seed, step): processes and interruptions change nothing.

    Each group of pictures of one shape is an endless row: all of its pictures in a new order, then all in another one.
    Micro-batches are cut from the rows, one after the other. What does not fill one at the end of an epoch waits, and
    opens the group's first micro-batch of the next epoch: no picture has a visit more before all pictures of its group
    have had one. An epoch consists of the micro-batches that its pictures complete, of all groups, shuffled.
    """

    def __init__(self, groups: Sequence[np.ndarray], batch: int, seed: int) -> None:
        """`groups`: the numbers of the pictures of each shape; `batch`: pictures in a global micro-batch."""
        self.groups = [group for group in groups if len(group)]
        self.batch = batch
        self.seed = seed
        self._sizes = np.array([len(group) for group in self.groups], dtype=np.int64)
        # The last epoch asked for, and the group of each of its steps; for each group, its last epoch and its order.
        self._shuffled: tuple[int, np.ndarray] = (-1, np.empty(0))
        self._permuted = [(-1, np.empty(0))] * len(self.groups)

    def micro_batch(self, step: int) -> MicroBatch:
        """The pictures of the micro-batch number `step`, counted from 0."""
        epoch = step * self.batch // int(self._sizes.sum())  # or a later one: rows hold back what does not fill a batch
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
        """For each group, the micro-batches that fit into its first `epochs` epochs."""
        return epochs * self._sizes // self.batch

    def _permutation(self, group: int, epoch: int) -> np.ndarray:
        if self._permuted[group][0] != epoch:
            # numpy's streams do not depend on trailing zeros: the first group's is that of (seed, epoch).
            rng = np.random.default_rng((self.seed, epoch, group))
            self._permuted[group] = (epoch, rng.permutation(self.groups[group]))
        return self._permuted[group][1]
