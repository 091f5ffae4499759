"""The detector reads renders exactly, also blurred, shifted and touching ones, and recognises nothing in blobs."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from snapgen.world.judge.background import fit_background
from snapgen.world.judge.canaries import random_pictures, reads_exactly
from snapgen.world.judge.components import Box, label
from snapgen.world.judge.detector import SceneDetector, Sighting
from snapgen.world.prompts import ScenePrompt, scene_prompts
from snapgen.world.scene import Category, Placed, Scene
from snapgen.world.source import SceneSettings, SceneSource
from snapgen.world.vocabulary import COLORS


@pytest.fixture(scope="module")
def detector() -> SceneDetector:
    return SceneDetector()


@pytest.fixture(scope="module")
def source() -> SceneSource:
    return SceneSource(SceneSettings())


def scene_of(*objects: Placed, background: str = "white", category: Category = "two") -> Scene:
    return Scene(category, objects, background, False)


def things(sighting: Sighting) -> list[tuple[str, str | None]]:
    return sorted(((seen.name, seen.color) for seen in sighting.objects), key=str)


def blurred(picture: np.ndarray, sigma: float, noise: float) -> np.ndarray:
    """About what an autoencoder of 28 dB does: soft edges, noise, a shift of all colours."""
    rng = np.random.default_rng(0)
    soft = np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(sigma)), dtype=np.float64)
    return np.clip(soft + rng.normal(0, noise, picture.shape) + rng.normal(0, noise, 3), 0, 255).astype(np.uint8)


def test_it_tells_apart_what_its_world_has(source: SceneSource) -> None:
    world = ("unicorn", "grinning face", "trumpet", "princess", "castle", "broom")
    detector = SceneDetector(nouns=world)
    for name, color in (*((name, None) for name in world), ("castle", "purple"), ("cat", None)):
        scene = scene_of(Placed(name, color, 0.4, 0.6, 0.4), background="green", category="single")
        assert things(detector(source.render(scene))) == [(name, color)]
    unknown = source.render(scene_of(Placed("anchor", None, 0.4, 0.6, 0.4), background="green", category="single"))
    assert ("anchor", None) not in things(detector(unknown))


def test_components() -> None:
    picture = ["##...#", ".#...#", "..#..#", "......", "#.#.##"]
    mask = np.array([[cell == "#" for cell in row] for row in picture])
    labels, boxes = label(mask)
    assert boxes == [Box(0, 0, 3, 3), Box(5, 0, 6, 3), Box(0, 4, 1, 5), Box(2, 4, 3, 5), Box(4, 4, 6, 5)]
    assert np.array_equal(labels > 0, mask)
    assert [int((labels == i + 1).sum()) for i in range(5)] == [4, 3, 1, 1, 2]
    spiral = np.array([[1, 0, 1], [1, 0, 1], [1, 1, 1]], dtype=bool)  # arms that meet late are one component
    assert label(spiral)[1] == [Box(0, 0, 3, 3)]
    assert label(np.zeros((4, 4), dtype=bool))[1] == []


@pytest.mark.parametrize("background", ["white", "blue", "sunset"])
def test_the_background_is_fitted_to_the_colours_of_the_picture(source: SceneSource, background: str) -> None:
    picture = source.render(scene_of(Placed("cat", "blue", 0.5, 0.5, 0.7), background=background)).astype(np.float32)
    shifted = np.minimum(picture, 240) + np.array([8, -12, 6], dtype=np.float32)
    fitted = fit_background(shifted)
    assert fitted.name == background
    assert fitted.colors == pytest.approx(shifted[:, 1], abs=12)
    assert np.median(fitted.distance[:, :3]) < 6


def test_clean_renders_are_read_exactly(detector: SceneDetector, source: SceneSource) -> None:
    truths = scene_prompts("heldout", 10)
    wrong = [t.name for t in truths if not reads_exactly(t, detector(source.render(t.scene)))]
    assert len(wrong) <= 1, wrong


def test_renders_of_other_sizes_are_read(detector: SceneDetector) -> None:
    scene = scene_of(Placed("owl", "green", 0.3, 0.3, 0.4), Placed("car", None, 0.7, 0.7, 0.4))
    for resolution in (96, 256):
        found = detector(SceneSource(SceneSettings(resolution=resolution)).render(scene))
        assert things(found) == [("car", None), ("owl", "green")]
        for seen, placed in zip(sorted(found.objects, key=lambda s: s.box), scene.objects, strict=True):
            center = (seen.box[0] + seen.box[2]) / 2, (seen.box[1] + seen.box[3]) / 2
            assert center == pytest.approx((placed.x, placed.y), abs=0.02)


def test_blurred_and_noisy_renders_are_read(detector: SceneDetector, source: SceneSource) -> None:
    truths = scene_prompts("heldout", 5)
    right = [reads_exactly(truth, detector(blurred(source.render(truth.scene), 1.0, 4.0))) for truth in truths]
    assert sum(right) >= len(right) - 2


@pytest.mark.parametrize("name", ["owl", "bus", "heart"])
def test_the_noun_does_not_depend_on_the_tint(detector: SceneDetector, source: SceneSource, name: str) -> None:
    for color in COLORS:
        found = detector(source.render(scene_of(Placed(name, color, 0.5, 0.5, 0.5))))
        assert [seen.name for seen in found.objects] == [name]
        assert found.objects[0].color in (color, None if (name, color) == ("heart", "red") else color)


def test_objects_that_touch_are_cut_apart(detector: SceneDetector, source: SceneSource) -> None:
    scene = scene_of(Placed("cow", "red", 0.31, 0.4, 0.4), Placed("lemon", "blue", 0.69, 0.45, 0.4))
    picture = source.render(scene)
    _, boxes = label(fit_background(picture.astype(np.float32)).distance > 36)
    assert len(boxes) == 1
    assert things(detector(picture)) == [("cow", "red"), ("lemon", "blue")]


def test_pieces_of_one_object_are_joined(detector: SceneDetector, source: SceneSource) -> None:
    picture = source.render(scene_of(Placed("bus", "green", 0.5, 0.5, 0.6)))
    picture[:, 62:64] = 255  # a cut through the middle
    assert things(detector(picture)) == [("bus", "green")]


def test_blobs_and_noise_are_nothing(detector: SceneDetector) -> None:
    found = [seen for picture in random_pictures(128) for seen in detector(picture).objects]
    assert len(found) <= 6  # of 25 ellipses; a round flat thing is something now and then
    smooth = np.random.default_rng(0).normal(0, 40, (6, 8, 8, 3)) + 128
    for colors in np.clip(smooth, 0, 255).astype(np.uint8):
        clouds = np.asarray(Image.fromarray(colors).resize((128, 128), Image.Resampling.BICUBIC))
        assert not detector(clouds).objects


def test_an_object_that_is_blurred_away_is_nothing(detector: SceneDetector, source: SceneSource) -> None:
    for name in ("cat", "bicycle", "robot", "clock"):
        picture = source.render(scene_of(Placed(name, None, 0.5, 0.5, 0.4)))
        assert not detector(np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(8)))).objects


def test_a_benchmark_of_some_nouns() -> None:
    prompts = scene_prompts("heldout", 4, ("cat", "apple", "boat", "heart"))
    assert len(prompts) == 24
    assert {placed.name for p in prompts for placed in p.scene.objects} <= {"cat", "apple", "boat", "heart"}


def test_prompts_are_the_same_for_ever_and_of_their_split() -> None:
    few, more = scene_prompts("heldout", 2), scene_prompts("heldout", 4)
    assert few == [prompt for prompt in more if prompt.index < 2]
    assert [prompt.name for prompt in few][:3] == ["heldout-single-0000", "heldout-single-0001", "heldout-color-0000"]
    untinted = [p for p in more + scene_prompts("train", 4) if p.category in ("counting", "position")]
    assert all(placed.color is None for prompt in untinted for placed in prompt.scene.objects)
    assert isinstance(few[0], ScenePrompt)
