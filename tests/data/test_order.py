"""The order of training: a function of seed and step that lets no picture wait for long."""

import numpy as np

from snapgen.data.order import MicroBatch, Order

GROUPS = [np.arange(0, 7), np.arange(7, 10), np.arange(0), np.arange(10, 30)]


def batches_of(groups: list[np.ndarray], batch: int, count: int, seed: int = 0) -> list[MicroBatch]:
    order = Order(groups, batch, seed)
    return [order.micro_batch(step) for step in range(count)]


def test_one_group_is_the_order_of_plain_epochs() -> None:
    """The order that runs without buckets always had: sample n is the n-th of (seed, epoch)'s permutation."""
    expected = [np.random.default_rng((5, epoch)).permutation(10) for epoch in range(4)]
    batches = batches_of([np.arange(10)], 4, 10, seed=5)
    assert np.concatenate([batch.pictures for batch in batches]).tolist() == np.concatenate(expected).tolist()
    epochs = np.concatenate([batch.epochs for batch in batches])
    assert epochs.tolist() == np.repeat(range(4), 10).tolist()


def test_a_micro_batch_is_of_one_group() -> None:
    for batch in batches_of(GROUPS, 4, 60):
        assert len(batch.pictures) == len(batch.epochs) == 4
        members = [group for group in GROUPS if len(group)][batch.group]
        assert set(batch.pictures) <= set(members)


def test_an_epoch_by_hand() -> None:
    """Seven, three and twenty pictures in fours: 1, 0 and 5 micro-batches; then 3, 2 and none are left over.

    With the second epoch there are 14, 6 and 40: 3, 1 and 10 so far, so it has 2, 1 and 5.
    """
    groups = [batch.group for batch in batches_of(GROUPS, 4, 14)]
    assert sorted(groups[:6]) == [0, 2, 2, 2, 2, 2]
    assert sorted(groups[6:]) == [0, 0, 1, 2, 2, 2, 2, 2]
    assert any(groups[:6] != [batch.group for batch in batches_of(GROUPS, 4, 6, seed)] for seed in range(1, 9))


def test_every_picture_is_seen_once_before_any_is_seen_again() -> None:
    count = 4 * 30  # 16 epochs
    seen = np.zeros(30, dtype=int)
    for batch in batches_of(GROUPS, 4, count):
        for picture, epoch in zip(batch.pictures, batch.epochs, strict=True):
            assert seen[picture] == epoch
            seen[picture] += 1
        members = [group for group in GROUPS if len(group)][batch.group]
        assert np.ptp(seen[members]) <= 1
    assert seen.sum() == 4 * count
    # 480 samples of 30 pictures: 16 visits each, less what waits, at most three of each group.
    assert seen.min() >= 15 and seen.max() <= 17


def test_it_does_not_matter_where_one_begins() -> None:
    whole = batches_of(GROUPS, 4, 50, seed=3)
    for step in (49, 0, 17, 18, 5):
        again = Order(GROUPS, 4, 3).micro_batch(step)
        assert again.pictures.tolist() == whole[step].pictures.tolist()
        assert again.epochs.tolist() == whole[step].epochs.tolist()
    order = Order(GROUPS, 4, 3)
    back_and_forth = [order.micro_batch(step).pictures.tolist() for step in (30, 2, 31, 3)]
    assert back_and_forth == [whole[step].pictures.tolist() for step in (30, 2, 31, 3)]


def test_fewer_pictures_than_a_micro_batch_holds() -> None:
    batches = batches_of([np.arange(3), np.arange(3, 5)], 8, 5)
    assert all(len(batch.pictures) == 8 for batch in batches)
    assert {batch.group for batch in batches} == {0, 1}
    counts = np.bincount(np.concatenate([batch.pictures for batch in batches]), minlength=5)
    assert counts.sum() == 40 and np.ptp(counts[:3]) <= 1 and np.ptp(counts[3:]) <= 1
