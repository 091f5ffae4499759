"""The teacher is diffusers' SD3 transformer under the UNet's call."""

from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel

from snapgen.models.denoiser import load_denoiser, text_width
from snapgen.models.distiller import DistilledStudent, Projector
from snapgen.models.presets import TEACHERS, UNETS, create_denoiser, create_unet
from snapgen.models.teacher import TeacherTransformer
from snapgen.models.unet import SnapGenUNet


@pytest.fixture(scope="module")
def teacher() -> TeacherTransformer:
    torch.manual_seed(0)
    network = create_denoiser("debug-teacher").eval()
    assert isinstance(network, TeacherTransformer)
    return network


def inputs(tokens: int = 5, size: int = 4) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(tokens) < torch.tensor([[tokens], [2], [1]])
    x, states = (torch.randn(3, *shape, generator=generator) for shape in ((16, size, size), (tokens, 32)))
    return x, 1000 * torch.rand(3, generator=generator), states, mask


@torch.no_grad()
def test_it_computes_what_diffusers_does(teacher: TeacherTransformer, tmp_path: Path) -> None:
    x, timestep, states, mask = inputs()
    teacher.save_pretrained(tmp_path)
    plain = SD3Transformer2DModel.from_pretrained(tmp_path).eval()
    seen = states * mask[..., None]
    pooled = torch.stack([row[keep].mean(dim=0) for row, keep in zip(states, mask, strict=True)])
    expected = plain(x, seen, pooled, timestep).sample
    torch.testing.assert_close(teacher(x, timestep, states, mask).sample, expected)
    torch.testing.assert_close(teacher(x, timestep, states, mask, return_dict=False)[0], expected)
    given = teacher(x, timestep, seen, pooled_projections=pooled).sample
    torch.testing.assert_close(given, expected)
    plain.save_pretrained(tmp_path / "plain")  # as a folder of Stable Diffusion 3 is
    loaded = load_denoiser(tmp_path / "plain").eval()
    assert isinstance(loaded, TeacherTransformer) and text_width(loaded) == 32
    torch.testing.assert_close(loaded(x, timestep, states, mask).sample, expected)


@torch.no_grad()
def test_taps_are_the_blocks_image_tokens_as_maps(teacher: TeacherTransformer) -> None:
    x, timestep, states, mask = inputs(size=8)
    tokens: list[torch.Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _, __, out: tokens.append(out[1])) for block in teacher.transformer_blocks
    ]
    velocity, maps = teacher(x, timestep, states, mask, taps=(0, -1))
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(velocity, teacher(x, timestep, states, mask).sample)
    for found, expected in zip(maps, tokens, strict=True):
        assert found.shape == (3, 32, 4, 4)  # patches of 2
        torch.testing.assert_close(found[:, :, 1, 2], expected[:, 1 * 4 + 2])
    assert not teacher.transformer_blocks[0]._forward_hooks


@pytest.mark.slow
def test_presets_are_of_the_size_that_was_meant() -> None:
    with torch.device("meta"):
        sizes = {name: sum(p.numel() for p in create_denoiser(name).parameters()) for name in (*UNETS, *TEACHERS)}
    for student in ("mini", "mini-small"):
        assert 4 <= sizes[f"{student}-teacher"] / sizes[student] <= 8


def test_published_teachers_have_their_shapes() -> None:
    """SD3.5-Large and its Turbo: 8.06 billion parameters in 38 blocks of 38 heads."""
    with torch.device("meta"):
        large = create_denoiser("sd3.5-large")
        assert sum(p.numel() for p in large.parameters()) / 1e9 == pytest.approx(8.06, abs=0.01)
        pooled, states = torch.empty(1, 2048), torch.empty(1, 333, 4096)
        velocity, maps = large(torch.empty(1, 16, 128, 128), 500.0, states, pooled_projections=pooled, taps=(-1,))
    assert velocity.shape == (1, 16, 128, 128) and maps[0].shape == (1, 2432, 64, 64)


def test_the_projector_is_two_convolutions_onto_the_teachers_grid() -> None:
    assert [type(layer).__name__ for layer in Projector(8, 12)] == ["Conv2d", "SiLU", "Conv2d"]
    unet = create_unet("debug").eval()
    assert isinstance(unet, SnapGenUNet)
    student = DistilledStudent(unet, 48).eval()
    x, timestep, states, mask = inputs(size=8)
    with torch.no_grad():
        velocity, projected = student(x, timestep, states, mask, grid=(4, 4))
        torch.testing.assert_close(velocity, unet(x, timestep, states, mask).sample)
        features = unet(x, timestep, states, mask, taps=(-1,))[1][0]
    assert projected.shape == (3, 48, 4, 4)
    assert features.shape == (3, UNETS["debug"]["block_out_channels"][0], 8, 8)
