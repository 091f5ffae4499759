"""Large pictures in tiles: where the tiles are, exact for what is local, and close with a trained autoencoder."""

from fractions import Fraction
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from snapgen.models.presets import create_autoencoder
from snapgen.models.tiling import in_tiles, tile_starts
from snapgen.pipeline.text_to_image import SnapGenPipeline


def test_tiles_cover_the_picture_and_end_with_it() -> None:
    assert tile_starts(8, 8, 6) == [0] and tile_starts(5, 8, 6) == [0]
    assert tile_starts(9, 8, 6) == [0, 1] and tile_starts(20, 8, 6) == [0, 6, 12]
    for length in range(1, 60):
        starts = tile_starts(length, 8, 6)
        assert starts[-1] + min(8, length) == length
        assert all(0 < b - a <= 6 for a, b in pairwise(starts))


@pytest.mark.parametrize("scale", [Fraction(2), Fraction(1, 2), Fraction(1)])
@pytest.mark.parametrize("size", [(16, 16), (38, 16), (40, 54), (8, 90)])
def test_what_is_local_is_exact(size: tuple[int, int], scale: Fraction) -> None:
    def resize(part: torch.Tensor) -> torch.Tensor:
        assert max(part.shape[-2:]) <= 16
        return F.avg_pool2d(part, 2) if scale < 1 else F.interpolate(part, scale_factor=float(scale))

    x = torch.randn(2, 3, *size)
    whole = F.avg_pool2d(x, 2) if scale < 1 else F.interpolate(x, scale_factor=float(scale))
    torch.testing.assert_close(in_tiles(resize, x, 16, 4, scale), whole)


@torch.no_grad()
def test_slices_and_small_pictures_are_as_before() -> None:
    torch.manual_seed(0)
    vae = create_autoencoder("debug").eval()
    pictures = torch.rand(3, 3, 64, 32) * 2 - 1
    z = vae.encode(pictures).latent_dist.mode()
    whole = vae.decode(z).sample
    vae.enable_tiling()  # the tiles are larger than these pictures
    assert torch.equal(vae.decode(z).sample, whole) and torch.equal(vae.encode(pictures).latent_dist.mode(), z)
    vae.enable_slicing()
    torch.testing.assert_close(vae.decode(z).sample, whole)
    torch.testing.assert_close(vae.encode(pictures).latent_dist.mode(), z)
    assert vae.encode(pictures).latent_dist.mean.shape == (3, 16, 8, 4)


@pytest.mark.slow
@torch.no_grad()
def test_tiled_pictures_of_a_trained_autoencoder_are_close() -> None:
    """Nine pictures of the bundled model side by side, in tiles of a third of the whole: 40 dB on a CPU."""
    pipeline = SnapGenPipeline.bundled()
    pipeline.set_progress_bar_config(disable=True)
    nouns = ["cat", "apple", "dog", "tree", "car", "star", "house", "fish", "ball"]
    generators = [torch.Generator().manual_seed(seed) for seed in range(9)]
    small = pipeline([f"a {noun}" for noun in nouns], generator=generators, output_type="pt").images
    rows = [torch.cat(list(small[row : row + 3]), dim=-1) for row in (0, 3, 6)]
    picture = torch.cat(rows, dim=-2)[None] * 2 - 1  # 1 3 384 384
    vae = pipeline.vae
    z = vae.encode(picture).latent_dist.mode()
    whole = vae.decode(z).sample.clamp(-1, 1)
    vae.enable_tiling()
    vae.tile_sample_min_size = 128
    error = (vae.decode(z).sample.clamp(-1, 1) - whole).square().mean()
    assert 10 * torch.log10(4 / error) > 35
    assert (vae.encode(picture).latent_dist.mode() - z).std() < 0.1 * z.std()
