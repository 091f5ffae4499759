"""The layers against float64 formulas and torch's own modules."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from snapgen.models.layers import (
    Attention,
    Downsample,
    GatedFeedForward,
    SeparableConv2d,
    Upsample,
    apply_rotary,
    rotary_embedding_2d,
    sinusoidal_embedding_2d,
)

HEIGHT, WIDTH = 5, 7


def rotated_scores(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Dot products of one query and one key put at every pair of positions: HEIGHT WIDTH HEIGHT WIDTH."""
    rotary = rotary_embedding_2d(HEIGHT, WIDTH, len(q), torch.device("cpu"))
    places = HEIGHT * WIDTH
    queries, keys = (apply_rotary(x.expand(1, places, 1, len(q)), rotary)[0, :, 0] for x in (q, k))
    return (queries @ keys.T).reshape(HEIGHT, WIDTH, HEIGHT, WIDTH)


def test_rotary_scores_depend_on_the_offset_alone() -> None:
    torch.manual_seed(0)
    scores = rotated_scores(torch.randn(32), torch.randn(32))
    by_offset: dict[tuple[int, int], list[float]] = {}
    for y in range(HEIGHT):
        for x in range(WIDTH):
            for v in range(HEIGHT):
                for u in range(WIDTH):
                    by_offset.setdefault((v - y, u - x), []).append(scores[y, x, v, u].item())
    assert all(max(values) - min(values) < 1e-4 for values in by_offset.values())
    means = sorted(sum(values) / len(values) for values in by_offset.values())
    assert all(b - a > 1e-4 for a, b in pairwise(means))  # and every offset has its own score


def test_rotary_turns_pairs_and_leaves_the_origin() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, HEIGHT * WIDTH, 3, 16)
    turned = apply_rotary(x, rotary_embedding_2d(HEIGHT, WIDTH, 16, torch.device("cpu")))
    assert torch.equal(turned[:, 0], x[:, 0])
    pairs = [part.reshape(2, -1, 3, 2, 8).norm(dim=-2) for part in (x, turned)]  # (first half, second half) of a head
    torch.testing.assert_close(*pairs)
    assert apply_rotary(x.half(), rotary_embedding_2d(HEIGHT, WIDTH, 16, torch.device("cpu"))).dtype == torch.float16


@pytest.mark.parametrize("context_dim", [None, 24])
def test_multi_query_attention_is_multi_head_with_repeated_keys_and_values(context_dim: int | None) -> None:
    torch.manual_seed(0)
    dim, head_dim, heads = 64, 16, 4
    ours = Attention(dim, head_dim, context_dim, qk_norm=False)
    width = context_dim or dim
    theirs = nn.MultiheadAttention(dim, heads, kdim=width, vdim=width, batch_first=True)
    key, value = ours.to_kv.weight.chunk(2)
    with torch.no_grad():
        theirs.in_proj_bias.zero_()
        theirs.out_proj.load_state_dict(ours.to_out.state_dict())
        weights = (ours.to_q.weight, key.repeat(heads, 1), value.repeat(heads, 1))
        if context_dim is None:
            theirs.in_proj_weight.copy_(torch.cat(weights))
        else:
            for name, weight in zip("qkv", weights, strict=True):
                getattr(theirs, f"{name}_proj_weight").copy_(weight)
        x = torch.randn(2, 9, dim)
        context = None if context_dim is None else torch.randn(2, 6, context_dim)
        source = x if context is None else context
        mask = torch.rand(2, source.shape[1]) < 0.7
        mask[:, 0] = True
        expected, _ = theirs(x, source, source, key_padding_mask=~mask)
        torch.testing.assert_close(ours(x, context, mask[:, None, None]), expected)


def test_multi_query_is_multi_head_of_equal_heads() -> None:
    torch.manual_seed(0)
    shared, separate = Attention(48, 16), Attention(48, 16, multi_query=False)
    weights = dict(shared.state_dict())
    weights["to_kv.weight"] = torch.cat([part.repeat(3, 1) for part in weights["to_kv.weight"].chunk(2)])
    separate.load_state_dict(weights)
    x, rotary = torch.randn(2, 12, 48), rotary_embedding_2d(3, 4, 16, torch.device("cpu"))
    torch.testing.assert_close(shared(x, rotary=rotary), separate(x, rotary=rotary))


def test_normalised_queries_do_not_care_for_scale() -> None:
    torch.manual_seed(0)
    attention = Attention(32, 16, context_dim=8)
    x, context = torch.randn(1, 5, 32), torch.randn(1, 4, 8)
    torch.testing.assert_close(attention(x, context), attention(1000 * x, context), rtol=1e-3, atol=1e-4)


def test_masked_tokens_change_nothing_at_all() -> None:
    torch.manual_seed(0)
    attention = Attention(32, 16, context_dim=8)
    x, context = torch.randn(2, 5, 32), torch.randn(2, 7, 8)
    mask = torch.tensor([[True] * 4 + [False] * 3, [True, False, True, True, False, False, False]])
    out = attention(x, context, mask[:, None, None])
    other = torch.where(mask[..., None], context, 1e4 * torch.randn_like(context))
    assert torch.equal(out, attention(x, other, mask[:, None, None]))
    for index in range(2):  # as if they were not there
        alone = attention(x[index : index + 1], context[index : index + 1, mask[index]])
        torch.testing.assert_close(out[index : index + 1], alone)


def test_attention_refuses_a_width_that_heads_do_not_divide() -> None:
    with pytest.raises(ValueError, match="attention width 40 is not divisible by the head width 16"):
        Attention(40, 16)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 6e4])
def test_rms_norm_in_half_precision(scale: float) -> None:
    torch.manual_seed(0)
    norm = Attention(32, 16).norm_q
    assert isinstance(norm, nn.RMSNorm)
    x = (scale * (2 * torch.rand(64, 16) - 1)).half()  # squares of 6e4 are far beyond the largest half, 65504
    x[0] = scale
    out = norm.half()(x)
    exact = x.double() / (x.double().square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.double(), exact, rtol=2e-3, atol=1e-3)


def test_gated_feed_forward_is_geglu() -> None:
    torch.manual_seed(0)
    layer = GatedFeedForward(8, ratio=3).double()
    assert layer.proj_in.out_features == 48
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    value, gate = (x @ layer.proj_in.weight.T + layer.proj_in.bias).split(24, dim=-1)
    gelu = 0.5 * gate * (1 + torch.erf(gate / math.sqrt(2)))
    torch.testing.assert_close(layer(x), (value * gelu) @ layer.proj_out.weight.T + layer.proj_out.bias)


@pytest.mark.parametrize(("gain", "stride"), [(1.0, 1), (1.0, 2), (0.1, 1)])
def test_separable_convolution_keeps_the_variance(gain: float, stride: int) -> None:
    torch.manual_seed(0)
    convolution = SeparableConv2d(128, 192, stride, gain)
    with torch.no_grad():
        out = convolution(torch.randn(2, 128, 32, 32))
    assert out.shape == (2, 192, 32 // stride, 32 // stride)
    assert out[..., 1:-1, 1:-1].std().item() == pytest.approx(gain, rel=0.1)  # at the border zeros come in
    depthwise, pointwise = convolution
    assert sum(p.numel() for p in convolution.parameters()) == 128 * (9 + 1) + 192 * (128 + 1)
    assert (depthwise.groups, pointwise.kernel_size) == (128, (1, 1))


@pytest.mark.parametrize("separable", [True, False])
def test_down_and_up(separable: bool) -> None:
    x = torch.randn(1, 8, 5, 6)
    assert Downsample(8, separable)(x).shape == (1, 8, 3, 3)
    up = Upsample(8, 4, separable)
    assert up(x).shape == (1, 4, 10, 12)
    assert up(x, size=(9, 11)).shape == (1, 4, 9, 11)


def test_sinusoidal_positions_are_fractions_of_the_picture() -> None:
    """The float64 formula, and the same place in a grid three times as fine (the middle one of three) the same."""
    dim, rows, columns = 16, 2, 3
    found = sinusoidal_embedding_2d(rows, columns, dim, torch.device("cpu"))
    assert found.shape == (rows * columns, dim)
    waves = [math.pi * 2 ** (4 * k / 3) for k in range(4)]  # radians a picture
    y, x = 1.5 / rows, 0.5 / columns  # row 1, column 0
    expected = [function(place * wave) for place in (y, x) for function in (math.sin, math.cos) for wave in waves]
    assert found[columns].tolist() == pytest.approx(expected, abs=1e-5)
    fine = sinusoidal_embedding_2d(3 * rows, 3 * columns, dim, torch.device("cpu"))
    middle = fine.unflatten(0, (3 * rows, 3 * columns))[1::3, 1::3].flatten(0, 1)
    torch.testing.assert_close(middle, found)
