"""The classifier of scenes: its size, and that a reading is the sum over the cells."""

import pytest
import torch

from snapgen.models.classifier import SceneClassifier


def tiny() -> SceneClassifier:
    torch.manual_seed(0)
    return SceneClassifier(("cat", "dog"), (None, "red", "blue"), channels=(8, 8, 8, 8), blocks=1).eval()


def test_the_shapes_are_those_of_the_cells() -> None:
    nouns, looks = tiny()(torch.zeros(2, 3, 64, 96))
    assert nouns.shape == (2, 3, 4, 6)  # two nouns and none
    assert looks.shape == (2, 3, 4, 6)


def test_a_reading_is_the_sum_over_cells() -> None:
    model, pictures = tiny(), torch.randn(2, 3, 64, 96)
    reading = model.read(pictures)
    nouns, looks = (logits.detach().double().softmax(dim=1) for logits in model(pictures))
    for b, n in [(0, 0), (1, 1)]:
        for look in range(3):
            expected = sum(nouns[b, n, y, x] * looks[b, look, y, x] for y in range(4) for x in range(6))
            assert reading.counts[b, n, look].item() == pytest.approx(float(expected), rel=1e-5)
        mass = nouns[b, n].sum()
        x = sum(nouns[b, n, y, x] * (x + 0.5) / 6 for y in range(4) for x in range(6)) / mass
        y = sum(nouns[b, n, y, x] * (y + 0.5) / 4 for y in range(4) for x in range(6)) / mass
        assert reading.centres[b, n].tolist() == pytest.approx([float(x), float(y)], rel=1e-5)


def test_it_is_small() -> None:
    model = SceneClassifier(tuple(f"noun {i}" for i in range(64)), (None, *"abcdefgh"))
    assert sum(parameter.numel() for parameter in model.parameters()) < 600_000
