"""Aspect-ratio buckets: the list of sizes, the choice of one, pictures cut to it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from support.recipes import RECIPES, recipe_of

from snapgen.data.buckets import BucketSettings, bucket_sizes, nearest_buckets
from snapgen.data.folder import FolderSettings

# Multiples of 64 whose area is at most 1024^2 and cannot be more at that longer side; by hand.
WIDE_1024 = [
    *((1024, 1024), (1088, 960), (1152, 896), (1216, 832), (1280, 768), (1344, 768), (1408, 704), (1472, 704)),
    *((1536, 640), (1600, 640), (1664, 576), (1728, 576), (1792, 576), (1856, 512), (1920, 512), (1984, 512)),
    (2048, 512),
]


def test_sizes_at_full_size_and_of_the_miniature() -> None:
    sizes = bucket_sizes(1024, BucketSettings())
    assert sizes[16:] == WIDE_1024
    assert sizes[:17] == [(height, width) for width, height in reversed(WIDE_1024)]
    # 4 x 4 units of 32 px; five long leave room for three, six for two.
    small = bucket_sizes(128, BucketSettings(step=32, max_ratio=3.0))
    assert small == [(64, 192), (96, 160), (128, 128), (160, 96), (192, 64)]
    assert bucket_sizes(128, BucketSettings(step=32, max_ratio=1.0)) == [(128, 128)]
    assert bucket_sizes(32, BucketSettings(step=32)) == [(32, 32)]  # two long would leave nothing


def test_the_nearest_in_log_ratio() -> None:
    buckets = [(64, 192), (96, 160), (128, 128), (160, 96), (192, 64)]  # ratios 1/3, 3/5, 1, 5/3, 3
    # The border between 1 and 5/3 is their geometric mean, 1.29099; the arithmetic one would be 1.333.
    sizes = [(1000, 1000), (1290, 1000), (1292, 1000), (1330, 1000), (9000, 1000), (10, 4000), (774, 1000), (0, 0)]
    assert nearest_buckets(np.array(sizes), buckets).tolist() == [2, 2, 3, 3, 4, 0, 1, 2]


def lost(ratio: float, resolution: int, settings: BucketSettings) -> float:
    """The share of a picture of that aspect ratio that is cut off, in percent."""
    sizes = bucket_sizes(resolution, settings)
    width, height = sizes[nearest_buckets(np.array([[round(9000 * ratio), 9000]]), sizes)[0]]
    stretch = width / height / ratio
    return 100 * (1 - min(stretch, 1 / stretch))


RATIOS = {"1:1": 1, "5:4": 5 / 4, "4:3": 4 / 3, "3:2": 3 / 2, "16:10": 16 / 10, "16:9": 16 / 9, "2:1": 2}


def test_what_common_pictures_lose() -> None:
    # By hand: at 256 px in steps of 64 there are 256x256 and 320x192; in steps of 32 also 288x224.
    coarse, fine = (BucketSettings(step=step, max_ratio=2.0) for step in (64, 32))
    before = {name: round(lost(ratio, 256, coarse), 1) for name, ratio in RATIOS.items()}
    after = {name: round(lost(ratio, 256, fine), 1) for name, ratio in RATIOS.items()}
    assert before == {"1:1": 0, "5:4": 20.0, "4:3": 20.0, "3:2": 10.0, "16:10": 4.0, "16:9": 6.2, "2:1": 16.7}
    assert after == {"1:1": 0, "5:4": 2.8, "4:3": 3.6, "3:2": 10.0, "16:10": 4.0, "16:9": 6.2, "2:1": 16.7}


@pytest.mark.parametrize("stage", ["t2i_2_256", "t2i_3_512", "t2i_4_1024", "t2i_5_distill_1024", "t2i_6_step_1024"])
def test_no_common_picture_loses_much_in_the_papers_stages(stage: str) -> None:
    data = recipe_of(RECIPES / "paper" / f"{stage}.yaml").data
    assert data.buckets.step == (64 if data.resolution == 1024 else 32)
    losses = {name: lost(ratio, data.resolution, data.buckets) for name, ratio in RATIOS.items()}
    assert losses["5:4"] < 3 and losses["4:3"] < 4 and max(losses.values()) < (17 if data.resolution == 256 else 5)
    upright = {name: lost(1 / ratio, data.resolution, data.buckets) for name, ratio in RATIOS.items()}
    assert upright == pytest.approx(losses, abs=0.2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of several shapes, the left third red, the rest blue; one lies on its side, one is none."""
    shapes = [(300, 100), (100, 100), (100, 300), (60, 20), (180, 100)]
    for number, size in enumerate(shapes):
        picture = Image.new("RGB", size, "blue")
        picture.paste("red", (0, 0, size[0] // 3, size[1]))
        picture.save(tmp_path / f"{number}.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # upright when turned clockwise
    Image.new("RGB", (300, 100), "blue").save(tmp_path / "5.jpg", exif=exif)
    (tmp_path / "6.jpg").write_bytes(b"no picture")
    for number in range(7):
        (tmp_path / f"{number}.txt").write_text(str(number))
    return tmp_path


def test_pictures_are_cut_to_their_buckets(folder: Path) -> None:
    buckets = BucketSettings(step=32)
    settings = FolderSettings(source="folder", path=folder, resolution=64, buckets=buckets)
    source = settings.open()
    # At 64 px: 32 x 128, 32 x 96, 64 x 64, 96 x 32, 128 x 32.
    assert [group.tolist() for group in source.groups()] == [[], [2, 5], [1, 6], [0, 3, 4], []]
    assert [source.image(index).shape for index in range(6)] == [
        *((32, 96, 3), (64, 64, 3), (96, 32, 3), (32, 96, 3), (32, 96, 3), (96, 32, 3))
    ]
    wide = source.image(0)  # nothing is cut from 3:1
    assert (wide[:, :28] == (255, 0, 0)).all() and (wide[:, 36:] == (0, 0, 255)).all()
    squares = settings.validation(4)
    assert [group.tolist() for group in squares.open().groups()] == [list(range(7))]
    assert squares.open().image(0).shape == (64, 64, 3)


def test_the_signature_knows_the_buckets(folder: Path) -> None:
    signatures = [
        FolderSettings(source="folder", path=folder, resolution=64, buckets=buckets).open().signature()
        for buckets in (None, BucketSettings(step=32), BucketSettings(step=32, max_ratio=2.0))
    ]
    assert "buckets" not in signatures[0]  # caches that were made before there were buckets stay valid
    assert signatures[0] != signatures[1] != signatures[2]


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="resolution 96 is no multiple of buckets.step 64"):
        FolderSettings(source="folder", path=tmp_path, resolution=96, buckets=BucketSettings())
    with pytest.raises(ValidationError, match="multiple of 32"):
        BucketSettings(step=48)
