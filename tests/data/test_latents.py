"""The cache of latents: written once, read again, encoded a few at a time."""

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from snapgen.data.latents import (
    BATCH,
    PIXELS,
    CachedBatches,
    EncodedBatches,
    LatentCache,
    encode_in_parts,
)
from snapgen.data.source import BadSampleError
from snapgen.messages import silent
from snapgen.weights import save_file_atomic

COUNT, SHARD = 100, 40  # three shards, the last one short


class Numbers:
    """A source whose picture `index` is all of one value."""

    def __len__(self) -> int:
        return COUNT

    def image(self, index: int) -> np.ndarray:
        return np.full((16, 8, 3), index, np.uint8)

    def groups(self) -> list[np.ndarray]:
        return [np.arange(COUNT)]

    def signature(self) -> Any:
        return COUNT

    def caption(self, index: int, variant: int) -> str:
        return str(index)


class Encoder:
    """Pictures to 2-channel latents of an eighth of the size; remembers what it saw and fails once that is `enough`."""

    def __init__(self, enough: int | None = None) -> None:
        self.seen: list[int] = []
        self.enough = enough

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        if self.enough is not None and len(self.seen) >= self.enough:
            raise KeyboardInterrupt
        assert pictures.shape[1:] == (3, 16, 8) and len(pictures) <= BATCH
        self.seen += [round((value + 1) * 127.5) for value in pictures[:, 0, 0, 0].tolist()]
        return torch.nn.functional.avg_pool2d(pictures[:, :2], 8)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], LatentCache]:
    monkeypatch.setattr("snapgen.data.latents.SHARD", SHARD)
    return lambda: LatentCache(Numbers(), tmp_path / "latents")


def loaded(cache: LatentCache) -> tuple[torch.Tensor, list[int]]:
    """All latents of a cache, and the indices of their pictures."""
    stored = cache.load()
    return torch.stack([stored.latents[row] for row in range(len(stored.latents))]), stored.indices.tolist()


def expected() -> torch.Tensor:
    values = torch.arange(COUNT) / 127.5 - 1
    return values[:, None, None, None].expand(COUNT, 2, 2, 1).half()


def test_every_picture_is_encoded_once(cache: Callable[[], LatentCache]) -> None:
    encoder = Encoder()
    cache().build(encoder, 0, 1, silent, print)
    assert encoder.seen == list(range(COUNT))
    latents, indices = loaded(cache())
    assert indices == list(range(COUNT))
    assert latents.dtype == torch.float16
    torch.testing.assert_close(latents, expected())
    assert len(list(cache().folder.iterdir())) == 3
    again = Encoder()
    cache().build(again, 0, 1, silent, print)
    assert again.seen == []


def test_an_interrupted_build_goes_on(cache: Callable[[], LatentCache]) -> None:
    with pytest.raises(KeyboardInterrupt):
        cache().build(Encoder(enough=SHARD + BATCH), 0, 1, silent, print)  # in the middle of the second shard
    assert [path.name for path in cache().folder.iterdir()] == ["latents_00000.safetensors"]
    encoder = Encoder()
    cache().build(encoder, 0, 1, silent, print)
    assert encoder.seen == list(range(SHARD, COUNT))
    torch.testing.assert_close(loaded(cache())[0], expected())


def test_processes_share_the_shards(cache: Callable[[], LatentCache]) -> None:
    encoders = [Encoder(), Encoder()]
    for rank in (1, 0):
        cache().build(encoders[rank], rank, 2, silent, print)
    assert encoders[0].seen == [*range(SHARD), *range(2 * SHARD, COUNT)]
    assert encoders[1].seen == list(range(SHARD, 2 * SHARD))
    torch.testing.assert_close(loaded(cache())[0], expected())


def test_pictures_that_cannot_be_read_are_left_out_and_named(
    cache: Callable[[], LatentCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    def image(source: Numbers, index: int) -> np.ndarray:
        if index in (3, 41, 42):
            raise BadSampleError(f"picture {index} cannot be read")
        return np.full((16, 8, 3), index, np.uint8)

    monkeypatch.setattr(Numbers, "image", image)
    warnings: list[str] = []
    cache().build(Encoder(), 0, 1, silent, warnings.append)
    assert warnings == [f"picture {index} cannot be read; it is skipped" for index in (3, 41, 42)]
    latents, indices = loaded(cache())
    assert indices == [index for index in range(COUNT) if index not in (3, 41, 42)]
    torch.testing.assert_close(latents, expected()[indices])

    monkeypatch.setattr("snapgen.data.latents.SHARD", 1)
    with pytest.raises(ValueError, match="none of the pictures 3 to 3 can be read"):
        LatentCache(Numbers(), cache().folder.parent / "other").build(Encoder(), 0, 1, silent, print)


def test_a_small_group_may_be_unreadable_all_may_not(
    cache: Callable[[], LatentCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    def image(source: Numbers, index: int) -> np.ndarray:
        if index >= 98 or broken:
            raise BadSampleError(f"picture {index} cannot be read")
        return np.full((16, 8, 3), index, np.uint8)

    broken = False
    monkeypatch.setattr(Numbers, "image", image)
    monkeypatch.setattr(Numbers, "groups", lambda source: [np.arange(98), np.arange(98, 100)])
    cache().build(Encoder(), 0, 1, silent, print)
    stored = cache().load()
    assert stored.indices.dtype == np.int64
    assert stored.indices.tolist() == list(range(98)) and len(stored.groups) == 1
    broken = True
    monkeypatch.setattr(Numbers, "groups", lambda source: [np.arange(2)])
    empty = LatentCache(Numbers(), cache().folder.parent / "other")
    empty.build(Encoder(), 0, 1, silent, print)
    with pytest.raises(ValueError, match="none of the pictures can be read"):
        empty.load()


class Shapes(Numbers):
    """Even pictures are tall, odd ones wide; those of `damaged` cannot be read."""

    damaged: tuple[int, ...] = ()

    def groups(self) -> list[np.ndarray]:
        return [np.arange(0, COUNT, 2), np.arange(0), np.arange(1, COUNT, 2)]

    def image(self, index: int) -> np.ndarray:
        if index in self.damaged:
            raise BadSampleError(f"picture {index} cannot be read")
        return np.full((16, 8, 3) if index % 2 == 0 else (8, 16, 3), index, np.uint8)


def encode_any(pictures: torch.Tensor) -> torch.Tensor:
    assert len(pictures) <= BATCH
    return torch.nn.functional.avg_pool2d(pictures[:, :2], 8)


def shape_batches(folder: Path, source: Shapes, batch: int) -> tuple[CachedBatches, EncodedBatches, list[str]]:
    """The same batches from a cache and encoded when due, and what the latter warn of."""
    cache = LatentCache(source, folder)
    cache.build(encode_any, 0, 1, silent, lambda text: None, workers=3)
    warnings: list[str] = []
    return (
        CachedBatches(cache.load(), batch, 0),
        EncodedBatches(source, encode_any, batch, 0, 3, warnings.append),
        warnings,
    )


def test_batches_are_the_same_from_a_cache_and_encoded_when_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snapgen.data.latents.SHARD", 20)
    cached, encoded, warnings = shape_batches(tmp_path, Shapes(), 40)
    shapes = set()
    for step in [*range(6), 3, 4, 0]:  # also from another step on
        one, other = cached(step, slice(0, 40)), encoded(step, slice(0, 40))
        assert (one.pictures, one.epochs) == (other.pictures, other.epochs)
        assert one.latents.dtype == other.latents.dtype == torch.float32
        torch.testing.assert_close(one.latents, other.latents, rtol=1e-3, atol=1e-3)
        values = torch.tensor(one.pictures) / 127.5 - 1
        torch.testing.assert_close(other.latents, values[:, None, None, None].expand(other.latents.shape))
        shapes.add(tuple(one.latents.shape[1:]))
    assert shapes == {(2, 2, 1), (2, 1, 2)}
    assert warnings == []


@pytest.mark.parametrize("kind", ["cached", "encoded"])
def test_processes_share_a_batch(tmp_path: Path, kind: str) -> None:
    cached, encoded, _ = shape_batches(tmp_path, Shapes(), 12)
    batches = cached if kind == "cached" else encoded
    for step in range(3):
        whole = batches(step, slice(0, 12))
        parts = [batches(step, slice(start, start + 4)) for start in (0, 4, 8)]
        assert torch.equal(torch.cat([part.latents for part in parts]), whole.latents)
        assert [picture for part in parts for picture in part.pictures] == whole.pictures


def test_the_next_picture_of_its_shape_stands_in_for_a_damaged_one(tmp_path: Path) -> None:
    source = Shapes()
    source.damaged = (6, 8, 98)
    _, encoded, warnings = shape_batches(tmp_path, source, 10)
    stand_ins = {6: 10, 8: 10, 98: 0}
    for step in range(20):
        chosen = encoded.order.micro_batch(step).pictures.tolist()
        batch = encoded(step, slice(0, 10))
        assert batch.pictures == [stand_ins.get(picture, picture) for picture in chosen]
        values = ((batch.latents[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
        assert values == batch.pictures
    assert sorted(warnings) == [f"picture {n} cannot be read; the next one stands in for it" for n in (6, 8, 98)]
    source.damaged = tuple(range(COUNT))
    broken = EncodedBatches(source, encode_any, 10, 0, 3, print)
    with pytest.raises(ValueError, match="none of the 50 pictures of one shape can be read"):
        broken(0, slice(0, 10))


def test_latents_stay_on_disk_until_they_are_used(tmp_path: Path) -> None:
    """A cache of 64 MB adds little to the memory of the process that opens it."""
    latents = torch.zeros(1024, 16, 64, 32, dtype=torch.float16)
    save_file_atomic({"latents": latents, "indices": torch.arange(1024)}, tmp_path / "latents_00000.safetensors")
    del latents

    class Many(Numbers):
        def groups(self) -> list[np.ndarray]:
            return [np.arange(1024)]

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    before = resident()
    batches = CachedBatches(LatentCache(Many(), tmp_path).load(), 8, 0)
    assert batches(0, slice(0, 8)).latents.shape == (8, 16, 64, 32)
    assert resident() - before < 16 * 2**20


def test_a_damaged_shard_is_named(cache: Callable[[], LatentCache]) -> None:
    cache().build(Encoder(), 0, 1, silent, print)
    path = cache().folder / "latents_00001.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="latents_00001.safetensors is damaged"):
        cache().load()


@pytest.mark.parametrize(
    ("height", "width", "together"), [(128, 128, 32), (256, 256, 32), (512, 512, 8), (1024, 2048, 1)]
)
def test_large_pictures_are_encoded_a_few_at_a_time(height: int, width: int, together: int) -> None:
    seen = []

    def encode(pictures: torch.Tensor) -> torch.Tensor:
        assert pictures.shape[0] * height * width <= PIXELS
        seen.append(pictures.shape[0])
        return pictures[:, :1, ::8, ::8]

    images = [np.full((height, width, 3), 7 * number, np.uint8) for number in range(together + 1)]
    latents = encode_in_parts(encode, images)
    assert seen == [together, 1]
    assert latents[:, 0, 0, 0].tolist() == pytest.approx(
        [number / 127.5 * 7 - 1 for number in range(together + 1)], abs=1e-6
    )
