"""Pictures are read ahead of training, in an order that depends on the step alone."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from snapgen.data.order import InOrder, Order
from snapgen.data.reading import AHEAD, PictureBatches, Sample, read_ahead
from snapgen.data.source import BadSampleError

COUNT = 30


class Numbers:
    """A source whose picture `index` is all of one value; those of `damaged` cannot be read."""

    damaged: tuple[int, ...] = ()

    def __len__(self) -> int:
        return COUNT

    def image(self, index: int) -> np.ndarray:
        if index in self.damaged:
            raise BadSampleError(f"picture {index} cannot be read")
        return np.full((2, 2, 3), index, np.uint8)


def make_batches(
    order: Order | InOrder, warnings: list[str] | None = None
) -> PictureBatches[tuple[int, int, int, int]]:
    def prepare(sample: Sample) -> tuple[int, int, int, int]:
        assert threading.current_thread() is not threading.main_thread()
        return sample.number, sample.picture, sample.epoch, int(sample.image[0, 0, 0])

    warn = print if warnings is None else warnings.append
    return PictureBatches(Numbers(), order, prepare, 3, warn)  # type: ignore[arg-type]


def test_every_picture_once_an_epoch_whatever_the_step_and_the_share() -> None:
    order = Order([np.arange(COUNT)], 10, seed=4)
    batches, whole = make_batches(order), slice(0, 10)
    found = [batches(step, whole) for step in range(6)]
    for epoch in (0, 1):
        pictures = [picture for batch in found[3 * epoch : 3 * epoch + 3] for _, picture, _, _ in batch]
        assert sorted(pictures) == list(range(COUNT)) and pictures != sorted(pictures)
    assert [number for batch in found for number, *_ in batch] == list(range(60))
    assert all(picture == value and epoch == step // 3 for step in range(6) for _, picture, epoch, value in found[step])
    assert [make_batches(order)(4, whole), batches(2, whole)] == [found[4], found[2]]
    assert make_batches(order)(3, slice(0, 5)) + batches(3, slice(5, 10)) == found[3]


def test_in_order_is_the_order_of_the_indices() -> None:
    batches = make_batches(InOrder(COUNT, 8))
    found = [sample for step in range(5) for sample in batches(step, slice(0, 8))]
    assert found == [(number, number % COUNT, number // COUNT, number % COUNT) for number in range(40)]


def test_the_next_picture_stands_in_and_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Numbers, "damaged", (3, 4, 29))
    warnings: list[str] = []
    batches = make_batches(InOrder(COUNT, COUNT), warnings)
    for step in range(2):
        pictures = [picture for _, picture, _, _ in batches(step, slice(0, COUNT))]
        assert pictures == [0, 1, 2, 5, 5, *range(5, 29), 0]
    assert batches.readable(4)[0] == 5
    assert sorted(warnings) == [f"picture {n} cannot be read; the next one stands in for it" for n in (29, 3, 4)]


def test_pictures_are_read_ahead_in_order() -> None:
    """While batch n is used, the next ones are read: as many as are said, and no more."""
    started: list[int] = []
    with ThreadPoolExecutor(2) as pool:
        stream = read_ahead(pool, lambda item: started.append(item) or -item, ([n, n + 1] for n in range(0, 20, 2)))
        assert next(stream) == [0, -1]
        while len(started) < 2 * (AHEAD + 1):
            time.sleep(0.01)
        pool.submit(int).result()  # nothing else waits
        assert sorted(started) == list(range(2 * (AHEAD + 1)))
        assert list(stream) == [[-n, -n - 1] for n in range(2, 20, 2)]
