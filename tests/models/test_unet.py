"""SnapGenUNet: the paper's sizes, and what a network must keep whatever its size."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from snapgen.models.blocks import SpatialTransformer
from snapgen.models.presets import UNETS, create_unet
from snapgen.models.unet import SnapGenUNet, linear_velocity

WIDTH = UNETS["debug"]["cross_attention_dim"]


@pytest.fixture(scope="module")
def unet() -> SnapGenUNet:
    torch.manual_seed(0)
    return create_unet("debug").eval()


def inputs(batch: int = 3, height: int = 4, width: int = 4, tokens: int = 6) -> tuple[torch.Tensor, ...]:
    """Latent, timestep, states and mask."""
    torch.manual_seed(1)
    mask = torch.arange(tokens) < torch.randint(1, tokens + 1, (batch, 1))
    x, states = torch.randn(batch, 16, height, width), torch.randn(batch, tokens, WIDTH)
    return x, 1000 * torch.rand(batch), states, mask


# Parameters in millions and GMACs: the paper's Sec. 3.1 and Tab. 1; tolerances in relative terms.
@pytest.mark.parametrize(("preset", "millions"), [("t2i", 379), ("imagenet", 372)])
def test_parameters_are_the_papers(preset: str, millions: float) -> None:
    with torch.device("meta"):
        unet = create_unet(preset)
    assert sum(parameter.numel() for parameter in unet.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.slow
def test_macs_are_the_papers() -> None:
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet = create_unet("imagenet")
        unet(torch.empty(1, 16, 32, 32), torch.tensor(1.0), torch.empty(1, 77, 768))
    assert counter.get_total_flops() / 2e9 == pytest.approx(38, rel=0.03)


@torch.no_grad()
def test_a_pooled_vector_is_added_to_the_time_embedding() -> None:
    """As Stable Diffusion 3 does; the paper's sizes leave no room for it, so the presets do without."""
    torch.manual_seed(0)
    unet = create_unet("debug", pooled_projection_dim=20).eval()
    x, timestep, states, mask = inputs()
    pooled = torch.randn(3, 20)
    found = unet(x, timestep, states, mask, pooled_projections=pooled).sample
    assert unet.pooled_embedding is not None
    added, embed = unet.pooled_embedding(pooled), unet.time_embedding.forward
    unet.time_embedding.forward = lambda frequencies: embed(frequencies) + added
    unet.pooled_embedding = None
    torch.testing.assert_close(found, unet(x, timestep, states, mask).sample)
    with pytest.raises(ValueError, match="reads a pooled text vector: pooled_projections expected"):
        create_unet("debug", pooled_projection_dim=20)(x, timestep, states, mask)


@pytest.mark.parametrize("size", [(4, 4), (5, 7), (8, 2), (3, 16), (1, 1)])
def test_any_size_of_latent(unet: SnapGenUNet, size: tuple[int, int]) -> None:
    x, timestep, states, mask = inputs(2, *size)
    with torch.no_grad():
        velocity = unet(x, timestep, states, mask).sample
    assert velocity.shape == x.shape
    assert velocity.isfinite().all()


def test_three_stages_of_odd_sizes() -> None:
    with torch.device("meta"):
        unet = create_unet("t2i")
        assert unet(torch.empty(2, 16, 37, 50), 1.0, torch.empty(2, 4, 2304)).sample.shape == (2, 16, 37, 50)


def test_shapes_inside(unet: SnapGenUNet) -> None:
    """The shape comments of forward: each stage halves the resolution and has its own width."""
    shapes: dict[str, torch.Size] = {}

    def note(name: str, module: nn.Module) -> None:
        module.register_forward_hook(lambda _, given, out: shapes.update({name: out.shape}))

    network = create_unet("debug")
    for name, module in network.named_modules():
        if module is not network:
            note(name, module)
    network(*inputs(2, 8, 6))
    assert shapes["conv_in"] == (2, 32, 8, 6)
    assert shapes["time_embedding"] == (2, 32)
    assert shapes["down.0.0"] == (2, 32, 8, 6)
    assert shapes["downsamplers.0"] == (2, 32, 4, 3)
    assert shapes["down.1.0"] == shapes["mid"] == shapes["mid_residual"] == (2, 64, 4, 3)
    assert shapes["down.1.0.transformer.layers.0.attn1"] == (2, 4 * 3, 64)
    assert shapes["up.0.1"] == (2, 64, 4, 3)
    assert shapes["upsamplers.0"] == (2, 64, 8, 6)
    assert shapes["up.1.1"] == (2, 32, 8, 6)
    assert "down.0.0.residual" not in shapes  # replaced by the transformer, rung (e)
    assert "down.0.0.transformer.layers.0.attn1" not in shapes  # self-attention in the lowest stage alone, rung (b)


def test_gradients_reach_every_parameter() -> None:
    torch.manual_seed(0)
    network = create_unet("debug")
    x, timestep, states, mask = inputs()
    network(x, timestep, states, mask).sample.square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_save_and_load_to_the_bit(unet: SnapGenUNet, tmp_path: Path) -> None:
    unet.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    loaded = SnapGenUNet.from_pretrained(tmp_path)
    assert loaded.config.block_out_channels == list(UNETS["debug"]["block_out_channels"])
    for (name, one), (other_name, other) in zip(unet.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert name == other_name and torch.equal(one, other)
    with torch.no_grad():
        assert torch.equal(unet(*inputs()).sample, loaded(*inputs()).sample)


def test_samples_do_not_see_each_other(unet: SnapGenUNet) -> None:
    x, timestep, states, mask = inputs(4)
    with torch.no_grad():
        together = unet(x, timestep, states, mask).sample
        for index in range(4):
            one = slice(index, index + 1)
            alone = unet(x[one], timestep[one], states[one], mask[one]).sample
            torch.testing.assert_close(together[one], alone, rtol=1e-4, atol=1e-5)
        x[1:], timestep[1:], states[1:] = 100 * x[1:], 5.0, -states[1:]
        assert torch.equal(unet(x, timestep, states, mask).sample[0], together[0])


def test_one_timestep_for_all(unet: SnapGenUNet) -> None:
    x, _, states, mask = inputs()
    with torch.no_grad():
        each = unet(x, torch.full((3,), 700.0), states, mask).sample
        for timestep in (700.0, 700, torch.tensor(700.0), torch.tensor([700.0])):
            torch.testing.assert_close(unet(x, timestep, states, mask).sample, each)


def test_masked_text_changes_nothing(unet: SnapGenUNet) -> None:
    x, timestep, states, mask = inputs()
    with torch.no_grad():
        out = unet(x, timestep, states, mask).sample
        noise = torch.where(mask[..., None], states, torch.randn_like(states))
        assert torch.equal(unet(x, timestep, noise, mask).sample, out)
        assert torch.equal(unet(x, timestep, states, mask.long()).sample, out)
        assert not torch.equal(unet(x, timestep, states).sample, out)


def test_text_time_and_place_matter(unet: SnapGenUNet) -> None:
    x, timestep, states, mask = inputs()
    with torch.no_grad():
        out = unet(x, timestep, states, mask).sample
        assert (unet(x, timestep, -states, mask).sample - out).abs().max() > 1e-3
        assert (unet(x, timestep / 2, states, mask).sample - out).abs().max() > 1e-3
        flipped = unet(x.flip(-1), timestep, states, mask).sample.flip(-1)
        assert (flipped - out).abs().max() > 1e-3


def test_gradient_checkpointing_gives_equal_gradients() -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        network = create_unet("debug")
        if checkpointing:
            network.enable_gradient_checkpointing()
        network(*inputs()).sample.square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in network.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_near(unet: SnapGenUNet, dtype: torch.dtype) -> None:
    x, timestep, states, mask = inputs()
    half = create_unet("debug").eval()
    half.load_state_dict(unet.state_dict())
    with torch.no_grad():
        exact = unet(x, timestep, states, mask).sample
        out = half.to(dtype)(x.to(dtype), timestep, states.to(dtype), mask).sample
    assert out.dtype == dtype
    assert (out.float() - exact).norm() / exact.norm() < (0.01 if dtype == torch.float16 else 0.08)


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_group_offloading_brings_every_weight_back(kind: str, unet: SnapGenUNet, tmp_path: Path) -> None:
    """Offloaded to disk, weights are gone from memory: a group that is not fetched shows."""
    network = create_unet("debug").eval()
    network.load_state_dict(unet.state_dict())
    groups = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    folder = str(tmp_path)
    network.enable_group_offload(torch.device("cpu"), offload_type=kind, offload_to_disk_path=folder, **groups)
    for parameter in network.parameters():
        parameter.data.fill_(float("nan"))
    with torch.no_grad():
        assert torch.equal(network(*inputs()).sample, unet(*inputs()).sample)


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="self_attention has 1 entries, block_out_channels 2"):
        SnapGenUNet(**UNETS["debug"] | {"self_attention": (True,)})
    with pytest.raises(ValueError, match="unknown UNet preset 'tiny': expected one of t2i, imagenet"):
        create_unet("tiny")


@pytest.mark.parametrize("preset", ["debug", "no transformer in the first stage"])
def test_text_projected_once_changes_no_bit(preset: str) -> None:
    torch.manual_seed(0)
    changes = {} if preset == "debug" else {"transformer_layers": (0, 2), "residual_blocks": (True, True)}
    network = SnapGenUNet(**UNETS["debug"] | changes | {"multi_query": not changes}).eval()
    x, timestep, states, mask = inputs()
    with torch.no_grad():
        keys_and_values = network.text_key_values(states)
        assert torch.equal(
            network(x, timestep, keys_and_values, mask).sample, network(x, timestep, states, mask).sample
        )
    assert [len(layers) for layers in keys_and_values] == ([1] * 7 if preset == "debug" else [0, 2, 2, 2, 2, 0, 0])


@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
def test_the_linear_part_of_the_velocity_is_the_best_one(spread: float) -> None:
    """Against the regression of v on x_t, drawn in float64."""
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 400_000, generator=generator, dtype=torch.float64) * torch.tensor([[spread], [1.0]])
    for sigma in (0.1, 0.5, 0.9):
        x, v = (1 - sigma) * x0 + sigma * noise, noise - x0
        factor = linear_velocity(torch.tensor(sigma, dtype=torch.float64), spread).item()
        assert factor == pytest.approx(((v * x).mean() / (x * x).mean()).item(), abs=0.02 * max(1, abs(factor)))
    assert linear_velocity(torch.tensor([0.0, 1.0]), spread).tolist() == pytest.approx([-1, 1])


def test_the_linear_part_is_added_to_the_output() -> None:
    torch.manual_seed(0)
    plain = create_unet("debug").eval()
    skipping = SnapGenUNet(**UNETS["debug"], skip_spread=0.3).eval()
    skipping.load_state_dict(plain.state_dict())
    x, timestep, states, mask = inputs()
    with torch.no_grad():
        difference = skipping(x, timestep, states, mask).sample - plain(x, timestep, states, mask).sample
        one_for_all = skipping(x, 700.0, states, mask).sample - plain(x, 700.0, states, mask).sample
    factors = linear_velocity(timestep / 1000, 0.3)
    torch.testing.assert_close(difference, factors[:, None, None, None] * x)
    torch.testing.assert_close(one_for_all, linear_velocity(torch.tensor(0.7), 0.3) * x)


def test_positions_are_added_in_every_transformer() -> None:
    """Without them a transformer cannot distinguish equal tokens by their place."""
    states, flat = torch.randn(1, 3, 32), torch.zeros(1, 32, 4, 4)
    for positions in (False, True):
        unet = create_unet("debug", positions=positions)
        transformers = [part for part in unet.modules() if isinstance(part, SpatialTransformer)]
        assert len(transformers) == 7 and all(part.positions == positions for part in transformers)
        found = transformers[0](flat, states, None, None)
        assert (found.std(dim=(2, 3)).max() > 1e-3) == positions
