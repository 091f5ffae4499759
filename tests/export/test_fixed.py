"""The rewrite for one size against the trained modules: layer by layer, then whole networks."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snapgen.export import fixed
from snapgen.export.parts import DecoderPart, UNetPart, decoder_part, unet_part
from snapgen.models.autoencoder import TinyBlock
from snapgen.models.blocks import ResidualBlock, SpatialTransformer, TransformerLayer
from snapgen.models.layers import Attention, GatedFeedForward, Upsample, apply_rotary, rotary_embedding_2d
from snapgen.models.presets import RUNGS, create_autoencoder, create_unet

EXACT = 4e-7  # relative, in fp32
HEIGHT, WIDTH, DIM, HEAD, CONTEXT, GROUPS = 4, 6, 32, 8, 24, 8
TINY_RUNG = {
    "block_out_channels": (16, 32, 48),
    "attention_head_dim": 16,
    "norm_num_groups": 8,
    "cross_attention_dim": CONTEXT,
    "time_embedding_dim": 32,
}


def shaken(module: nn.Module) -> nn.Module:
    """`module` with all weights away from where they start, in evaluation."""
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return module.eval()


def error(found: Tensor, expected: Tensor) -> float:
    """The relative error."""
    assert found.shape == expected.shape
    return ((found - expected).norm() / expected.norm()).item()


@pytest.fixture(autouse=True)
def seeded() -> Any:
    """The same weights and inputs in every run; no gradients."""
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def tokens(dim: int = DIM, count: int = HEIGHT * WIDTH) -> Tensor:
    return torch.randn(1, count, dim)


def seen(count: int, visible: int) -> Tensor:
    """A mask of `count` tokens, the first ones visible."""
    return (torch.arange(count) < visible)[None]


def added(mask: Tensor) -> Tensor:
    """A mask as the rewrite adds it to scores."""
    return (mask[:, None].float() - 1) * fixed.MASKED


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.GroupNorm(GROUPS, DIM), (1, DIM, HEIGHT, WIDTH)),
        (nn.LayerNorm(DIM), (1, 5, DIM)),
        (nn.RMSNorm(DIM, eps=1e-6), (1, 5, DIM)),
    ],
)
def test_a_norm_is_rewritten_exactly(norm: nn.Module, shape: tuple[int, ...]) -> None:
    shaken(norm)
    x = 3 * torch.randn(shape) + 1
    rewritten = fixed.linear_norm(norm)
    assert type(rewritten) is not type(norm)
    assert error(rewritten(x), norm(x)) <= EXACT
    assert fixed.native_norm(norm) is norm


def test_upsampling_and_pixel_shuffle_move_the_same_numbers() -> None:
    upsample = shaken(Upsample(DIM, 16))
    x = torch.randn(1, DIM, HEIGHT, WIDTH)
    assert torch.equal(fixed.FixedUpsample(upsample)(x), upsample(x))
    assert torch.equal(fixed.pixel_shuffle(x), nn.PixelShuffle(2)(x))


def test_rotary_embedding_is_a_constant_turn() -> None:
    x = torch.randn(1, HEIGHT * WIDTH, 3, HEAD)
    expected = apply_rotary(x, rotary_embedding_2d(HEIGHT, WIDTH, HEAD, x.device))
    found = fixed.FixedRotary(HEIGHT, WIDTH, HEAD)(x.reshape(1, -1, HEAD))
    assert error(found, expected.reshape(1, -1, HEAD)) <= EXACT


@pytest.mark.parametrize("multi_query", [True, False])
@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("rotary", [True, False])
def test_self_attention(multi_query: bool, qk_norm: bool, rotary: bool) -> None:
    attention = shaken(Attention(DIM, HEAD, None, multi_query, qk_norm))
    turns = rotary_embedding_2d(HEIGHT, WIDTH, HEAD, torch.device("cpu")) if rotary else None
    turn = fixed.FixedRotary(HEIGHT, WIDTH, HEAD) if rotary else None
    x = tokens()
    found = fixed.FixedAttention(attention, turn, fixed.linear_norm)(x, x)
    assert error(found, attention(x, rotary=turns)) <= EXACT


@pytest.mark.parametrize("multi_query", [True, False])
def test_cross_attention_does_not_see_masked_tokens(multi_query: bool) -> None:
    attention = shaken(Attention(DIM, HEAD, CONTEXT, multi_query))
    x, context, mask = tokens(), tokens(CONTEXT, 7), seen(7, 5)
    rewritten = fixed.FixedAttention(attention, None, fixed.linear_norm)
    found = rewritten(x, context, added(mask))
    assert error(found, attention(x, context, mask[:, None, None])) <= EXACT
    context[:, 5:] = 100
    assert torch.equal(rewritten(x, context, added(mask)), found)


def test_feed_forward() -> None:
    ffn, x = shaken(GatedFeedForward(DIM, 3)), tokens()
    assert error(fixed.FixedFeedForward(ffn)(x), ffn(x)) <= EXACT


@pytest.mark.parametrize("self_attention", [True, False])
def test_transformer_layer(self_attention: bool) -> None:
    layer = shaken(TransformerLayer(DIM, CONTEXT, HEAD, self_attention))
    x, context, mask = tokens(), tokens(CONTEXT, 7), seen(7, 5)
    turns = rotary_embedding_2d(HEIGHT, WIDTH, HEAD, x.device)
    rewritten = fixed.FixedTransformerLayer(layer, fixed.FixedRotary(HEIGHT, WIDTH, HEAD), fixed.linear_norm)
    assert error(rewritten(x, context, added(mask)), layer(x, context, mask[:, None, None], turns)) <= EXACT


@pytest.mark.parametrize(("in_channels", "positions"), [(DIM, False), (48, True)])
def test_spatial_transformer(in_channels: int, positions: bool) -> None:
    settings = {"context_dim": CONTEXT, "head_dim": HEAD, "self_attention": True}
    block = shaken(SpatialTransformer(in_channels, DIM, 2, GROUPS, positions, **settings))
    x, context, mask = torch.randn(1, in_channels, HEIGHT, WIDTH), tokens(CONTEXT, 7), seen(7, 5)
    turns = rotary_embedding_2d(HEIGHT, WIDTH, HEAD, x.device)
    turn = fixed.FixedRotary(HEIGHT, WIDTH, HEAD)
    rewritten = fixed.FixedSpatialTransformer(block, HEIGHT, WIDTH, turn, fixed.linear_norm)
    assert error(rewritten(x, context, added(mask)), block(x, context, mask[:, None, None], turns)) <= EXACT


@pytest.mark.parametrize(("separable", "expansion"), [(True, 2), (False, None)])
@pytest.mark.parametrize("out_channels", [DIM, 16])
def test_residual_block(separable: bool, expansion: int | None, out_channels: int) -> None:
    block = shaken(ResidualBlock(DIM, out_channels, 12, GROUPS, separable, expansion))
    x, time = torch.randn(1, DIM, HEIGHT, WIDTH), torch.randn(1, 12)
    assert error(fixed.FixedResidualBlock(block, fixed.linear_norm)(x, time), block(x, time)) <= EXACT


@pytest.mark.parametrize("groups", [GROUPS, None])
def test_tiny_block(groups: int | None) -> None:
    block, x = shaken(TinyBlock(DIM, 2, groups)), torch.randn(1, DIM, HEIGHT, WIDTH)
    assert error(fixed.FixedTinyBlock(block, fixed.linear_norm)(x), block(x)) <= EXACT


def rounding(part: Callable[..., tuple[Tensor]], inputs: list[Tensor], expected: Tensor) -> float:
    """How far rounding to fp32 alone brings a network from what it computes in fp64, at least `EXACT`."""
    wide = [tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs]
    return max(EXACT, 2 * error(expected.double(), part(*wide)[0]))


@pytest.mark.parametrize("norms", [fixed.linear_norm, fixed.native_norm])
@pytest.mark.parametrize(
    ("preset", "changes", "height", "width"),
    [
        ("debug", {}, 4, 4),
        ("debug", {"pooled_projection_dim": 12, "skip_spread": 0.6, "positions": True}, 6, 2),
        ("mini", {}, 8, 16),
        ("mini-small", {}, 16, 16),
        *((f"rung-{name}", TINY_RUNG, 8, 4) for name in RUNGS),
    ],
)
def test_a_whole_unet(preset: str, changes: dict[str, Any], height: int, width: int, norms: fixed.Norms) -> None:
    unet = shaken(create_unet(preset, **changes))
    part = unet_part(unet, height, width, 7)
    part.inputs["encoder_attention_mask"][:, 5:] = 0
    part.inputs["timestep"][:] = 731.4
    inputs = list(part.inputs.values())
    expected = part(part.inputs)["velocity"]
    allowed = rounding(UNetPart(copy.deepcopy(unet).double()), inputs, expected)
    inputs[3] = inputs[3].float()
    assert error(fixed.FixedUNet(unet, height, width, norms)(*inputs)[0], expected) <= allowed


@pytest.mark.parametrize("preset", ["debug", "mini", "mini-white", "decoder"])
def test_a_whole_decoder(preset: str) -> None:
    vae = shaken(create_autoencoder(preset, scaling_factor=1.5, shift_factor=0.06))
    part = decoder_part(vae, 4, 6)
    expected = part(part.inputs)["picture"]
    allowed = rounding(DecoderPart(copy.deepcopy(vae).double()), list(part.inputs.values()), expected)
    assert error(fixed.FixedDecoder(vae)(part.inputs["latents"])[0], expected) <= allowed


def test_the_rewrite_shares_the_trained_weights() -> None:
    unet = create_unet("mini")
    rewritten = fixed.FixedUNet(unet, 16, 16)
    shared = {parameter.data_ptr() for parameter in unet.parameters()}
    new = [
        parameter
        for name, parameter in rewritten.named_parameters()
        if parameter.untyped_storage().data_ptr() not in shared
    ]
    assert sum(parameter.numel() for parameter in new) < 0.05 * sum(part.numel() for part in unet.parameters())


def test_only_the_promised_operations_are_left() -> None:
    unet = create_unet("debug", positions=True, skip_spread=0.6).eval()
    inputs = list(unet_part(unet, 4, 4, 7).inputs.values())
    inputs[3] = inputs[3].float()
    program = torch.export.export(fixed.FixedUNet(unet, 4, 4), tuple(inputs), strict=False)
    found = {node.target.__name__.partition(".")[0] for node in program.graph.nodes if node.op == "call_function"}
    arithmetic = {
        "add",
        "sub",
        "rsub",
        "mul",
        "div",
        "square",
        "mean",
        "rsqrt",
        "sigmoid",
        "silu",
        "gelu",
        "cos",
        "sin",
        "softmax",
    }
    assert found <= arithmetic | {"conv2d", "linear", "bmm", "reshape", "permute", "cat"}, found


def test_a_size_that_the_stages_cannot_halve_is_refused() -> None:
    unet = create_unet("debug")
    with pytest.raises(ValueError, match=r"the latent has 4 x 5 positions, expected multiples of 2: .* 1 time"):
        fixed.FixedUNet(unet, 4, 5)
