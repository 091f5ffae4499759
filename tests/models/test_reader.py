from __future__ import annotations

import pytest
import torch

from snapgen.models.reader import Reader, answer_loss, right_answers, unit_rms


def test_each_question_is_answered_from_its_own_caption_and_unmasked_tokens() -> None:
    torch.manual_seed(0)
    reader = Reader(16, subjects=5, answers={"color": 3, "count": 4}, heads=2)
    states, mask = torch.randn(2, 6, 16), torch.ones(2, 6, dtype=torch.bool)
    mask[:, 4:] = False
    questions = {
        "color": (torch.tensor([0, 1, 1]), torch.tensor([2, 2, 4])),
        "count": (torch.tensor([1]), torch.tensor([0])),
    }
    logits = reader(states, mask, questions)
    assert {kind: tuple(found.shape) for kind, found in logits.items()} == {"color": (3, 3), "count": (1, 4)}
    other = states.clone()
    other[0] += 1  # another caption
    other[:, 4:] += 1  # padding
    changed = reader(other, mask, questions)
    assert not torch.allclose(changed["color"][0], logits["color"][0])
    torch.testing.assert_close(changed["color"][1:], logits["color"][1:])
    torch.testing.assert_close(changed["count"], logits["count"])


def test_a_question_is_one_softmax_over_the_tokens() -> None:
    torch.manual_seed(0)
    reader, states = Reader(8, subjects=2, answers={"size": 3}, heads=1).double(), torch.randn(1, 5, 8).double()
    logits = reader(states, torch.ones(1, 5), {"size": (torch.tensor([0]), torch.tensor([1]))})["size"]
    keys, values = reader.to_kv(states[0]).chunk(2, dim=1)
    query = reader.subject.weight[1] + reader.kind.weight[0]
    seen = torch.softmax(keys @ query / 8**0.5, dim=0) @ values
    torch.testing.assert_close(logits[0], reader.answer["size"](seen))


def test_right_answers_and_their_loss() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    assert right_answers(logits, torch.tensor([0, 0])).tolist() == [True, False]
    assert answer_loss(logits, torch.tensor([0, 0])).item() == pytest.approx((0.126928 + 1.313262) / 2, abs=1e-5)
    several = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    assert right_answers(torch.tensor([[1.0, 2.0], [1.0, 1.0]]), several).tolist() == [True, False]
    assert answer_loss(torch.zeros(2, 2), several).item() == pytest.approx(2 * 0.693147, abs=1e-5)


def test_states_have_unit_rms() -> None:
    assert unit_rms(5 * torch.randn(3, 4, 32)).square().mean(-1).sqrt() == pytest.approx(torch.ones(3, 4), abs=1e-3)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="width 10 of the text states is not divisible by 4 heads"):
        Reader(10, 1, {"size": 3})
