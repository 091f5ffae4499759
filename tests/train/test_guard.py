"""What a run takes for an explosion, of losses that are positive and of those that an adversary makes cross zero."""

import math

import pytest

from snapgen.config import TrainSettings
from snapgen.train.guard import SETTLED, Guard

SETTINGS = TrainSettings(steps=1, batch_size=1, learning_rate=1e-3, skip_factor=20.0, max_skipped=3)


def test_a_loss_that_crosses_zero_is_no_explosion() -> None:
    guard = Guard(SETTINGS)
    for step in range(1000):
        loss = 0.1 * math.sin(step)
        assert guard.objection({"loss": loss}) is None
        guard.accept(loss)
    assert "more than 20 times its average magnitude 0.06" in f"{guard.objection({'loss': 2.0})}"


def test_the_first_losses_are_not_judged_and_rows_are_counted() -> None:
    guard = Guard(SETTINGS)
    for _ in range(SETTLED - 1):
        guard.accept(1.0)
    assert guard.objection({"loss": 1e6}) is None
    guard.accept(1.0)
    assert guard.objection({"loss": 19.9}) is None and guard.objection({"loss": 20.1}) is not None
    assert guard.objection({"loss": math.inf}) == "loss is inf"
    assert [guard.skip(), guard.skip()] == [False, False]
    guard.accept(1.0)
    assert [guard.skip(), guard.skip(), guard.skip()] == [False, False, True]
    assert guard.skipped == 5


def test_a_state_without_a_number_is_refused() -> None:
    guard = Guard(SETTINGS)
    state = guard.state()
    guard.load(state | {"settings": 3})
    assert guard.settings is SETTINGS
    with pytest.raises(ValueError, match="state.json lacks the guard's accepted: it is damaged"):
        guard.load({name: value for name, value in state.items() if name != "accepted"})
