"""SnapGenAutoencoder: the paper's tiny decoder behind SD3's encoder."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from snapgen.models.autoencoder import SnapGenAutoencoder, SubPixelUpsample, TinyBlock
from snapgen.models.presets import AUTOENCODERS, create_autoencoder


def sd3_autoencoder(widths: tuple[int, ...] = (128, 256, 512, 512), layers: int = 2, groups: int = 32) -> AutoencoderKL:
    """Diffusers' autoencoder with the configuration of SD3's `vae/config.json`, or a thinner one."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=widths,
        layers_per_block=layers,
        latent_channels=16,
        norm_num_groups=groups,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


@pytest.fixture
def autoencoder() -> SnapGenAutoencoder:
    torch.manual_seed(0)
    return create_autoencoder("debug").eval()


def test_decoder_has_the_papers_size() -> None:
    """Tab. 2: 1.38 M parameters, 224 GMACs for 1024 x 1024 pixels."""
    with torch.device("meta"), torch.no_grad():
        autoencoder = create_autoencoder("decoder")
        with FlopCounterMode(display=False) as counter:
            picture = autoencoder.decode(torch.empty(1, 16, 128, 128)).sample
    assert picture.shape == (1, 3, 1024, 1024)
    assert sum(p.numel() for p in autoencoder.decoder.parameters()) / 1e6 == pytest.approx(1.38, rel=0.02)
    assert counter.get_total_flops() / 2e9 == pytest.approx(224, rel=0.03)


def test_encoder_is_sd3s() -> None:
    with torch.device("meta"):
        ours, theirs = create_autoencoder("decoder"), sd3_autoencoder()
    shapes = [{name: tensor.shape for name, tensor in one.encoder.state_dict().items()} for one in (ours, theirs)]
    assert shapes[0] == shapes[1]
    for name in ("scaling_factor", "shift_factor", "latent_channels"):
        assert ours.config[name] == theirs.config[name]


def test_encoder_computes_what_sd3s_does(autoencoder: SnapGenAutoencoder) -> None:
    preset = AUTOENCODERS["debug"]
    theirs = sd3_autoencoder(preset["encoder_channels"], preset["encoder_layers_per_block"], preset["norm_num_groups"])
    theirs.encoder.load_state_dict(autoencoder.encoder.state_dict())
    pictures = 2 * torch.rand(2, 3, 32, 48) - 1
    with torch.no_grad():
        ours, expected = autoencoder.encode(pictures).latent_dist, theirs.eval().encode(pictures).latent_dist
    assert torch.equal(ours.mean, expected.mean)
    assert torch.equal(ours.logvar, expected.logvar)


def test_decoder_is_separable_without_attention_and_conv_shortcuts() -> None:
    with torch.device("meta"):
        decoder = create_autoencoder("decoder").decoder
    leaves = [module for module in decoder.modules() if not list(module.children())]
    assert {type(module) for module in leaves} == {nn.Conv2d, nn.GroupNorm, nn.Identity, nn.PixelShuffle}
    convolutions = [module for module in leaves if isinstance(module, nn.Conv2d)]
    depthwise = [module for module in convolutions if module.kernel_size == (3, 3)]
    pointwise = [module for module in convolutions if module.kernel_size == (1, 1)]
    assert all(module.groups == module.in_channels for module in depthwise)
    blocks = [module for module in decoder.modules() if isinstance(module, TinyBlock)]
    # No 1x1 but the partner of a 3x3 and the last of a block: no shortcut
    assert len(pointwise) == len(depthwise) + len(blocks) and len(depthwise) + len(pointwise) == len(convolutions)


def test_decoder_has_fewer_blocks_at_high_resolution() -> None:
    """Sec. 3.2, the fourth change; SD3's decoder has three blocks at each."""
    with torch.device("meta"):
        stages = create_autoencoder("decoder").decoder.stages
    blocks = [len(stage.blocks) for stage in stages]
    widths = [stage.blocks[0].expand[0].in_channels for stage in stages]
    assert list(blocks) == sorted(blocks, reverse=True) and blocks[-1] < blocks[0] <= 3
    assert list(widths) == sorted(widths, reverse=True)


def test_upsampling_starts_as_nearest_neighbours() -> None:
    torch.manual_seed(0)
    upsample, x = SubPixelUpsample(8, 4), torch.randn(2, 8, 5, 6)
    with torch.no_grad():
        coarse, fine = upsample[0](x)[:, ::4], upsample(x)
    assert fine.shape == (2, 4, 10, 12)
    torch.testing.assert_close(fine, nn.functional.interpolate(coarse, scale_factor=2.0, mode="nearest"))


def test_a_block_leaves_its_input_as_it_was() -> None:
    x = torch.randn(1, 16, 4, 4)
    before = x.clone()
    with torch.no_grad():
        TinyBlock(16, 2, None)(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("size", [(32, 32), (64, 32), (40, 72)])
def test_shapes(autoencoder: SnapGenAutoencoder, size: tuple[int, int]) -> None:
    height, width = size
    assert autoencoder.spatial_factor == 8
    with torch.no_grad():
        latents = autoencoder.encode(torch.zeros(2, 3, height, width)).latent_dist.mode()
        assert latents.shape == (2, 16, height // 8, width // 8)
        assert autoencoder.decode(latents).sample.shape == (2, 3, height, width)


def test_denormalize_undoes_normalize() -> None:
    with torch.device("meta"):
        autoencoder = create_autoencoder("decoder")
    z = torch.randn(4, 16, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(autoencoder.normalize(z), (z - 0.0609) * 1.5305)
    torch.testing.assert_close(autoencoder.denormalize(autoencoder.normalize(z)), z)


def test_gradients_reach_every_parameter(autoencoder: SnapGenAutoencoder) -> None:
    torch.manual_seed(0)
    autoencoder(torch.randn(2, 3, 32, 32), sample_posterior=True).sample.square().mean().backward()
    for name, parameter in autoencoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_a_fresh_decoder_keeps_the_signal() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        picture = create_autoencoder("mini").decode(torch.randn(2, 16, 8, 8)).sample
    assert 0.1 < picture.std() < 10  # PyTorch's own initialisation leaves less than 1e-3


def test_flat_areas_keep_their_level(autoencoder: SnapGenAutoencoder) -> None:
    """Norms stand inside the residual branches: a brighter latent is a brighter picture."""
    with torch.no_grad():
        dim, bright = (autoencoder.decode(level * torch.ones(1, 16, 8, 8)).sample for level in (1.0, 4.0))
    assert (bright - dim).abs().mean() > 0.5 * dim.abs().mean()


def test_save_and_load_to_the_bit(autoencoder: SnapGenAutoencoder, tmp_path: Path) -> None:
    autoencoder.register_to_config(scaling_factor=0.7, shift_factor=-0.2)
    autoencoder.save_pretrained(tmp_path)
    loaded = SnapGenAutoencoder.from_pretrained(tmp_path)
    assert (loaded.config.scaling_factor, loaded.config.shift_factor) == (0.7, -0.2)
    state = loaded.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in autoencoder.state_dict().items())


def test_pictures_do_not_see_each_other(autoencoder: SnapGenAutoencoder) -> None:
    torch.manual_seed(0)
    pictures = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        together = autoencoder(pictures).sample
        torch.testing.assert_close(autoencoder(pictures[1:2]).sample, together[1:2], rtol=1e-4, atol=1e-5)
        pictures[1:] = 7.0
        assert torch.equal(autoencoder(pictures).sample[0], together[0])


def test_the_posterior_is_drawn_from_the_generator(autoencoder: SnapGenAutoencoder) -> None:
    pictures = torch.rand(1, 3, 32, 32)
    seeds = (1, 1, 2)
    with torch.no_grad():
        one, same, other = (
            autoencoder(pictures, sample_posterior=True, generator=torch.Generator().manual_seed(seed)).sample
            for seed in seeds
        )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="decoder_channels has 4 entries.*decoder_blocks 1"):
        SnapGenAutoencoder(**AUTOENCODERS["debug"] | {"decoder_blocks": (1,)})
    with pytest.raises(ValueError, match="unknown autoencoder preset 'tiny'"):
        create_autoencoder("tiny")


def test_whitening_changes_latents_and_no_reconstruction() -> None:
    torch.manual_seed(0)
    autoencoder = create_autoencoder("debug-white").eval().double()
    pictures = torch.rand(24, 3, 32, 32, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        before = autoencoder(pictures).sample
        posterior = autoencoder.encode(pictures).latent_dist
        autoencoder.whiten(posterior.mode())
        latents = autoencoder.normalize(autoencoder.encode(pictures).latent_dist.mode())
        after = autoencoder(pictures).sample
    torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-8)
    values = latents.transpose(0, 1).flatten(1)
    torch.testing.assert_close(values.mean(dim=1), torch.zeros(16, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.cov(values), torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="whitening needs an autoencoder with use_post_quant_conv"):
        create_autoencoder("debug").whiten(latents)
