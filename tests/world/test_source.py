"""Scenes: deterministic, true to their ground truth, inside the frame, apart, within their split."""

import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from snapgen.world import source as scenes
from snapgen.world.composition import draw_twin
from snapgen.world.font import FontMissingError, font_sha256
from snapgen.world.scene import CATEGORIES, Scene
from snapgen.world.source import SceneSettings, SceneSource
from snapgen.world.splits import Split, held_out, held_out_compositions
from snapgen.world.vocabulary import COLORS, EVERYTHING, NOUNS


@pytest.fixture(scope="module")
def source() -> SceneSource:
    return SceneSource(SceneSettings(count=2000))


def test_settings_open_their_source() -> None:
    source = SceneSettings(count=7, resolution=64).open()
    assert isinstance(source, SceneSource)
    assert len(source) == 7
    image = source.image(6)
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.uint8
    with pytest.raises(IndexError):
        source.image(7)


def test_a_picture_depends_on_settings_and_index_alone(source: SceneSource) -> None:
    again = SceneSource(SceneSettings(count=50))
    order = [31, 2, 7]  # another order, other things drawn in between
    for index in order:
        again.caption(index, 3)
        again.twin(index)
        assert again.scene(index) == source.scene(index)
        assert np.array_equal(again.image(index), source.image(index))
        assert again.caption(index, 3) == source.caption(index, 3)
    other = SceneSource(SceneSettings(count=50, seed=1))
    assert sum(other.scene(i) == source.scene(i) for i in range(50)) == 0


def test_a_source_travels_to_a_worker_process_after_drawing(source: SceneSource) -> None:
    light = len(pickle.dumps(SceneSource(source.settings)))
    source.image(0)
    sent = pickle.dumps(source)
    assert len(sent) == light  # neither the font nor scenes that were drawn go along
    assert np.array_equal(pickle.loads(sent).image(5), source.image(5))


def test_scenes_beyond_those_kept_are_drawn_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "KEPT", 2)
    source = SceneSource(SceneSettings(count=4))
    once = [source.scene(index) for index in range(4)]
    again = [source.scene(index) for index in range(4)]
    assert once == again
    assert [a is b for a, b in zip(once, again, strict=True)] == [True, True, False, False]


def test_scenes_survive_json(source: SceneSource) -> None:
    for index in range(100):
        scene = source.scene(index)
        assert Scene.from_json(json.loads(json.dumps(scene.to_json()))) == scene


def test_categories_hold_what_their_names_say(source: SceneSource) -> None:
    seen = set()
    for index in range(1000):
        scene = source.scene(index)
        seen.add(scene.category)
        names = [placed.name for placed in scene.objects]
        colors = [placed.color for placed in scene.objects]
        if scene.category in ("single", "color"):
            assert len(names) == 1
            assert (colors[0] is not None) == (scene.category == "color")
        elif scene.category == "counting":
            assert 2 <= len(names) <= 5
            assert len(set(names)) == 1
            assert len(set(colors)) == 1
        else:
            assert len(set(names)) == 2
            assert (scene.relation is not None) == (scene.category == "position")
            if scene.category != "position":
                assert (None not in colors) == (scene.category == "attribution")
            if colors[0]:
                assert colors[0] != colors[1]
    assert seen == set(CATEGORIES)


def test_relations_hold_and_no_other_does(source: SceneSource) -> None:
    holds = {
        "left": lambda dx, dy: dx < -abs(dy),
        "right": lambda dx, dy: dx > abs(dy),
        "above": lambda dx, dy: dy < -abs(dx),
        "below": lambda dx, dy: dy > abs(dx),
    }
    relations: Counter[str] = Counter()
    for scene in map(source.scene, range(1500)):
        if scene.relation:
            first, second = scene.objects
            relations[scene.relation] += 1
            for relation, check in holds.items():
                assert check(first.x - second.x, first.y - second.y) == (relation == scene.relation)
    assert min(relations.values()) > 40
    assert len(relations) == 4


def test_objects_are_in_the_frame_and_apart(source: SceneSource) -> None:
    for index in range(600):
        for scene in (source.scene(index), source.twin(index)):
            for i, placed in enumerate(scene.objects):
                reach = placed.size / 2
                assert reach <= placed.x <= 1 - reach
                assert reach <= placed.y <= 1 - reach
                assert all(placed.apart(other) > 0 for other in scene.objects[:i])


def test_pixels_change_only_inside_the_boxes_and_to_their_edges() -> None:
    for resolution in (64, 128):
        source = SceneSource(SceneSettings(count=120, resolution=resolution))
        for index in range(120):
            scene = source.scene(index)
            empty = source.render(Scene("single", (), scene.background, False))
            changed = (source.image(index) != empty).any(axis=-1)
            outside = changed.copy()
            for left, top, right, bottom in source.boxes(scene):
                assert 0 <= left < right <= resolution
                assert 0 <= top < bottom <= resolution
                inside = changed[top:bottom, left:right]
                assert inside.mean() > 0.15
                # The sprite is trimmed: its box is its own extent, within a faint px.
                assert np.ptp(np.flatnonzero(inside.any(axis=0))) >= right - left - 4
                assert np.ptp(np.flatnonzero(inside.any(axis=1))) >= bottom - top - 4
                outside[top:bottom, left:right] = False
            assert not outside.any()


def test_tints_are_the_colour_that_the_caption_states() -> None:
    source = SceneSource(SceneSettings(count=300, split="all", mixture={"color": 1.0}))
    right = 0
    for index in range(300):
        scene = source.scene(index)
        left, top, end, bottom = source.boxes(scene)[0]
        image = source.image(index).astype(float)
        empty = source.render(Scene("single", (), scene.background, False)).astype(float)
        sprite = image[top:bottom, left:end][(image != empty).any(axis=-1)[top:bottom, left:end]]
        # Nearest tint by direction from gray, with lightness as a tie-breaker (brown is a dark orange).
        distances = {name: np.abs(np.median(sprite, axis=0) - rgb).sum() for name, rgb in COLORS.items()}
        right += min(distances, key=distances.__getitem__) == scene.objects[0].color
    assert right >= 0.95 * 300


def test_unstated_backgrounds_are_mostly_white() -> None:
    source = SceneSource(SceneSettings(count=3000))
    unstated = [s.background for s in map(source.scene, range(3000)) if not s.background_stated]
    assert 0.55 < unstated.count("white") / len(unstated) < 0.75


def test_mixture_weighs_categories() -> None:
    source = SceneSource(SceneSettings(count=400, mixture={"two": 3.0, "color": 1.0, "single": 0.0}))
    seen = Counter(source.scene(i).category for i in range(400))
    assert set(seen) == {"two", "color"}
    assert 250 < seen["two"] < 350


@pytest.mark.parametrize(
    "wrong", [{"mixture": {"pairs": 1.0}}, {"mixture": {"two": -1.0}}, {"mixture": {"two": 0.0}}, {"resolution": 16}]
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SceneSettings(**wrong)


@pytest.mark.slow
def test_train_and_heldout_share_no_composition() -> None:
    def compositions(split: Split) -> list[tuple[Scene, list[tuple[str, ...]]]]:
        source = SceneSource(SceneSettings(count=1500, split=split))
        scenes = [source.scene(i) for i in range(1500)] + ([source.twin(i) for i in range(1500)] * (split == "train"))
        return [(scene, held_out_compositions(scene)) for scene in scenes]

    assert not any(found for _, found in compositions("train"))
    assert all(found for scene, found in compositions("heldout") if scene.category != "single")


def test_shares_held_out_are_as_documented_and_leave_every_noun_something_to_learn() -> None:
    names = [noun.name for noun in NOUNS]
    colors = {name: [held_out("color", name, color) for color in COLORS] for name in names}
    counts = {name: [held_out("count", name, str(n)) for n in (2, 3, 4, 5)] for name in names}
    pairs = [held_out("pair", *sorted((a, b))) for a in names for b in names if a < b]
    assert 0.07 < np.mean(list(colors.values())) < 0.13
    assert 0.07 < np.mean(list(counts.values())) < 0.13
    assert 0.18 < np.mean(pairs) < 0.22
    assert all(sum(held) <= len(held) / 2 for held in (*colors.values(), *counts.values()))


def differences(scene: Scene, twin: Scene) -> set[str]:
    """The stated attributes in which two scenes differ."""
    found = set()
    if len(scene.objects) != len(twin.objects):
        found.add("count")
    pairs = list(zip(scene.objects, twin.objects, strict=False))
    nouns = {(a.name, b.name) for a, b in pairs if a.name != b.name}
    colors = {(a.color, b.color) for a, b in pairs if a.color != b.color}
    found |= {"noun"} if nouns else set()
    if len(colors) == 2:
        assert {a for a, _ in colors} == {b for _, b in colors}  # swapped, not two changes
    found |= {"color"} if colors else set()
    found |= {
        field
        for field in ("category", "background", "background_stated", "relation", "size_word")
        if getattr(scene, field) != getattr(twin, field)
    }
    assert len(nouns) <= 1
    return found


def test_twins_differ_in_exactly_one_stated_attribute(source: SceneSource) -> None:
    seen: Counter[tuple[str, ...]] = Counter()
    for index in range(1000):
        scene = source.scene(index)
        changed = differences(scene, source.twin(index))
        assert len(changed) == 1
        assert not changed & {"category", "background_stated"}
        assert "background" not in changed or scene.background_stated
        seen[(scene.category, *changed)] += 1
    for expected in [
        ("single", "noun"),
        ("color", "color"),
        ("counting", "count"),
        ("two", "noun"),
        ("position", "relation"),
        ("attribution", "color"),
        ("attribution", "background"),
    ]:
        assert seen[expected] > 5


def test_twins_are_found_for_heldout_scenes_too() -> None:
    source = SceneSource(SceneSettings(count=200, split="heldout"))
    rng = np.random.default_rng(0)
    for index in range(200):
        assert len(differences(source.scene(index), draw_twin(rng, source.scene(index), "heldout"))) == 1


def test_a_missing_font_is_one_clear_line_and_captions_need_none() -> None:
    source = SceneSource(SceneSettings(count=3, font="/nowhere/NotoColorEmoji.ttf"))
    assert source.caption(0, 0)
    with pytest.raises(FontMissingError, match="apt-get install fonts-noto-color-emoji") as error:
        source.image(0)
    assert isinstance(error.value, OSError)
    assert "\n" not in str(error.value)


def test_another_file_is_not_taken_for_the_font(tmp_path: Path) -> None:
    other = tmp_path / "NotoColorEmoji.ttf"
    other.write_bytes(b"not a font")
    with pytest.raises(FontMissingError, match="not Noto Color Emoji"):
        SceneSource(SceneSettings(count=3, font=str(other))).image(0)


def test_the_font_has_a_hash_to_record() -> None:
    assert len(font_sha256()) == 64


def test_snapped_objects_stand_on_the_grid() -> None:
    free, snapped = (SceneSource(SceneSettings(resolution=128, count=200, snap=snap)) for snap in (1, 8))
    for index in range(200):
        scene = snapped.scene(index)
        assert scene == free.scene(index)  # the truth is the same, only the drawing moves
        for (left, top, right, bottom), before in zip(snapped.boxes(scene), free.boxes(scene), strict=True):
            assert left % 8 == top % 8 == 0 and max(right - left, bottom - top) % 8 == 0
            assert left >= 0 and top >= 0 and right <= 128 and bottom <= 128
            assert max(abs(left - before[0]), abs(top - before[1])) < 12
    assert snapped.image(0).shape == (128, 128, 3)


def test_a_world_of_everything() -> None:
    settings = SceneSettings(count=400, nouns=("everything",))
    assert settings.nouns == tuple(noun.name for noun in EVERYTHING)  # a recipe that was run says what there was
    source = SceneSource(settings)
    drawn = [placed for index in range(400) for placed in source.scene(index).objects]
    assert len({placed.name for placed in drawn}) > 300
    twins = {placed.name for index in range(400) for placed in source.twin(index).objects}
    assert twins - {placed.name for placed in drawn}
    assert source.image(0).shape == (128, 128, 3)


def test_a_world_of_some_nouns() -> None:
    source = SceneSource(SceneSettings(count=300, nouns=("cat", "apple", "moon")))
    names = [{placed.name for placed in source.scene(index).objects} for index in range(300)]
    assert set().union(*names) == {"cat", "apple", "moon"}
    assert {placed.name for index in range(300) for placed in source.twin(index).objects} == {"cat", "apple", "moon"}
    assert max(map(len, names)) == 2
    for nouns, message in (
        (("cat", "bananna"), "bananna is not in the vocabulary: banana, "),
        (("cat",), "at least two"),
    ):
        with pytest.raises(ValidationError, match=message):
            SceneSettings(nouns=nouns)
    alone = SceneSource(SceneSettings(split="heldout", count=1, nouns=("cat", "dog"), mixture={"two": 1.0}))
    with pytest.raises(ValueError, match="cat, dog have no two scene in the split heldout: name more nouns"):
        alone.scene(0)


def test_objects_take_the_largest_of_the_sizes_that_they_may_have() -> None:
    free, few = (SceneSource(SceneSettings(count=60, sizes=sizes)) for sizes in (None, (24, 48, 96)))
    for index in range(60):
        for placed in free.scene(index).objects:
            own, chosen = (source._box(placed)[-1] for source in (free, few))
            assert chosen == max((size for size in (24, 48, 96) if size <= own), default=24)
