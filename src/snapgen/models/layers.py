"""The layers that the networks here are made of: separable convolution, 2D RoPE, attention, gated FFN.

Shapes: `B C H W` for feature maps, `B N D` for tokens, `B N heads head_dim` inside attention.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def pointwise(in_channels: int, out_channels: int, gain: float = 1.0) -> nn.Conv2d:
    """A 1x1 convolution, initialised to scale the variance of its input by `gain` squared."""
    conv = nn.Conv2d(in_channels, out_channels, 1)
    nn.init.normal_(conv.weight, std=gain / in_channels**0.5)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


class Chain(nn.Sequential):
    """Layers in sequence, for classes with arguments of their own: a slice is a plain `nn.Sequential`."""

    def __getitem__(self, index: slice | int) -> nn.Module:
        return nn.Sequential(*list(self)[index]) if isinstance(index, slice) else super().__getitem__(index)


class SeparableConv2d(Chain):
    """Depthwise 3x3 followed by pointwise 1x1 (MobileNets; Sec. 3.1 "SepConv"). B C H W -> B C' H/stride W/stride.

    Initialised to scale the variance of its input by `gain` squared. PyTorch's default divides the variance by nine, so
    a signal that passes five such convolutions outside any residual would start 243 times too small.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, gain: float = 1.0):
        depthwise = nn.Conv2d(in_channels, in_channels, 3, stride=stride, padding=1, groups=in_channels)
        nn.init.normal_(depthwise.weight, std=1 / 3)
        nn.init.zeros_(depthwise.bias)  # type: ignore[arg-type]
        super().__init__(depthwise, pointwise(in_channels, out_channels, gain))


def conv3x3(in_channels: int, out_channels: int, separable: bool, stride: int = 1, gain: float = 1.0) -> nn.Module:
    """A 3x3 convolution: plain (rungs (a) and (b) of Fig. 2) or separable (from (c) on)."""
    if separable:
        return SeparableConv2d(in_channels, out_channels, stride, gain)
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)


# The gain at the end of residual branches: near the identity at first, yet with gradients everywhere.
RESIDUAL_GAIN = 0.1


class Downsample(nn.Module):
    """Halves height and width (rounded up) with a 3x3 convolution of stride 2."""

    def __init__(self, channels: int, separable: bool = True):
        super().__init__()
        self.conv = conv3x3(channels, channels, separable, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling, then a 3x3 convolution that may change the width."""

    def __init__(self, in_channels: int, out_channels: int, separable: bool = True):
        super().__init__()
        self.conv = conv3x3(in_channels, out_channels, separable)

    def forward(self, x: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
        """`size`: the height and width to reach; by default twice those of `x`."""
        if size is None:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        else:
            x = F.interpolate(x, size=size, mode="nearest")
        return self.conv(x)


def rotary_embedding_2d(
    height: int, width: int, head_dim: int, device: torch.device, base: float = 10_000.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of 2D RoPE (RoFormer, extended to two axes) for a `height` x `width` grid in row order.

    The first half of the head's pairs rotates with the row, the second half with the column, so that a dot
    product of rotated vectors depends only on the offset between their positions.

    Returns two fp32 tensors of shape `height * width, head_dim / 2`. `head_dim` must be divisible by 4.
    """
    frequencies = base ** (-torch.arange(0, head_dim // 4, device=device, dtype=torch.float32) / (head_dim // 4))
    rows = torch.arange(height, device=device, dtype=torch.float32)[:, None] * frequencies  # H F
    columns = torch.arange(width, device=device, dtype=torch.float32)[:, None] * frequencies  # W F
    angles = torch.cat(
        [
            rows[:, None, :].expand(height, width, -1),
            columns[None, :, :].expand(height, width, -1),
        ],
        dim=-1,
    ).flatten(0, 1)
    return angles.cos(), angles.sin()


def sinusoidal_embedding_2d(height: int, width: int, dim: int, device: torch.device) -> torch.Tensor:
    """Sinusoidal embeddings of the positions of a `height` x `width` grid.

    The first half of the features encodes the row, the second half the column, both as fractions of the picture, with
    wavelengths from two pictures to an eighth of one: a larger grid has the same layout.

    Returns fp32, `height * width, dim` in row order. `dim` must be divisible by 4.
    """
    waves = torch.pi * 2 ** torch.linspace(0, 4, dim // 4, device=device)  # radians per picture

    def phases(count: int) -> torch.Tensor:
        places = (torch.arange(count, device=device, dtype=torch.float32) + 0.5) / count
        return torch.cat([(places[:, None] * waves).sin(), (places[:, None] * waves).cos()], dim=-1)  # count dim/2

    rows = phases(height)[:, None, :].expand(height, width, -1)
    columns = phases(width)[None, :, :].expand(height, width, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


def apply_rotary(x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """`x` (B N heads head_dim) rotated by `rotary_embedding_2d`'s result; computed in fp32, returned in x's dtype."""
    cos, sin = (part[:, None] for part in rotary)  # N 1 head_dim/2
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


# The keys and values of one attention layer, each B M kv_heads head_dim.
KeyValue = tuple[torch.Tensor, torch.Tensor]


class Attention(nn.Module):
    """Attention whose query heads share one key and value head, or (rungs (a) to (d)) have one each.

    Sharing is multi-query attention (Shazeer 2019; Fig. 2 (e')). `qk_norm`: queries and keys are RMS-normalised
    per head after projection (Fig. 2 (f)). With `context_dim` it is cross-attention; without, self-attention,
    optionally with 2D RoPE.
    """

    def __init__(
        self,
        dim: int,
        head_dim: int,
        context_dim: int | None = None,
        multi_query: bool = True,
        qk_norm: bool = True,
    ):
        super().__init__()
        if dim % head_dim:
            raise ValueError(f"attention width {dim} is not divisible by the head width {head_dim}")
        self.heads = dim // head_dim
        self.kv_heads = 1 if multi_query else self.heads
        self.head_dim = head_dim
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(context_dim or dim, 2 * self.kv_heads * head_dim, bias=False)
        self.norm_q = nn.RMSNorm(head_dim, eps=1e-6) if qk_norm else nn.Identity()
        self.norm_k = nn.RMSNorm(head_dim, eps=1e-6) if qk_norm else nn.Identity()
        self.to_out = nn.Linear(dim, dim)

    def key_value(self, context: torch.Tensor) -> KeyValue:
        """The normalised keys and the values of B M D' states, each B M kv_heads head_dim."""
        k, v = self.to_kv(context).unflatten(-1, (2 * self.kv_heads, self.head_dim)).chunk(2, dim=2)
        return self.norm_k(k), v

    def forward(
        self,
        x: torch.Tensor,
        context: torch.Tensor | KeyValue | None = None,
        mask: torch.Tensor | None = None,
        rotary: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """x: B N D; context: B M D', or its `key_value` (default: x); mask: B 1 1 M boolean, True = attend.

        Returns B N D.
        """
        batch, tokens, dim = x.shape
        q = self.norm_q(self.to_q(x).reshape(batch, tokens, self.heads, self.head_dim))  # B N heads head_dim
        k, v = context if isinstance(context, tuple) else self.key_value(x if context is None else context)
        if rotary is not None:
            q, k = apply_rotary(q, rotary), apply_rotary(k, rotary)
        # N tokens of many heads that share keys and values are, to attention, N * heads queries of one head.
        q = q.reshape(batch, -1, self.kv_heads, self.head_dim).transpose(1, 2)  # B kv_heads N*heads/kv_heads head_dim
        k, v = k.transpose(1, 2).to(q.dtype), v.transpose(1, 2).to(q.dtype)  # B kv_heads M head_dim
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.to_out(out.transpose(1, 2).reshape(batch, tokens, dim))


class GatedFeedForward(nn.Module):
    """GEGLU feed-forward: the first projection is twice `ratio * dim` wide; one half gates the other (Fig. 2 (d))."""

    def __init__(self, dim: int, ratio: int):
        super().__init__()
        self.proj_in = nn.Linear(dim, 2 * ratio * dim)
        self.proj_out = nn.Linear(ratio * dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """B N D -> B N D."""
        value, gate = self.proj_in(x).chunk(2, dim=-1)
        return self.proj_out(value * F.gelu(gate))
