"""The two blocks of the efficient UNet (Fig. 2): residual inverted bottleneck and spatial transformer."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from snapgen.models.layers import (
    RESIDUAL_GAIN,
    Attention,
    GatedFeedForward,
    KeyValue,
    conv3x3,
    sinusoidal_embedding_2d,
)


class ResidualBlock(nn.Module):
    """GN - SiLU - conv - [+ time] - GN - SiLU - conv, with a 1x1 shortcut where the widths differ.

    Expanded and separable (Fig. 2 (c); MobileNetV4's universal inverted bottleneck), the convolutions are
    DW3x3 - PW(in -> expansion * in) and DW3x3 - PW(-> out), and the time embedding is added at the expanded width.
    Without expansion the width between them is the output's.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_dim: int,
        groups: int,
        separable: bool = True,
        expansion: int | None = 2,
    ):
        super().__init__()
        hidden = expansion * in_channels if expansion else out_channels
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=1e-5)
        self.conv1 = conv3x3(in_channels, hidden, separable)
        self.time_proj = nn.Linear(time_dim, hidden)
        self.norm2 = nn.GroupNorm(groups, hidden, eps=1e-5)
        self.conv2 = conv3x3(hidden, out_channels, separable, gain=RESIDUAL_GAIN)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """x: B C H W; time: B T or 1 T, already activated. Returns B C' H W."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time_proj(time)[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return self.shortcut(x) + h


class TransformerLayer(nn.Module):
    """A pre-norm transformer layer: self-attention (where the stage has it), cross-attention, gated FFN."""

    def __init__(
        self,
        dim: int,
        context_dim: int,
        head_dim: int,
        self_attention: bool,
        ffn_ratio: int = 3,
        multi_query: bool = True,
        qk_norm: bool = True,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim) if self_attention else None
        self.attn1 = Attention(dim, head_dim, None, multi_query, qk_norm) if self_attention else None
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = Attention(dim, head_dim, context_dim, multi_query, qk_norm)
        self.norm3 = nn.LayerNorm(dim)
        self.ffn = GatedFeedForward(dim, ffn_ratio)

    def forward(
        self,
        x: torch.Tensor,
        context: torch.Tensor | KeyValue,
        mask: torch.Tensor | None,
        rotary: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> torch.Tensor:
        """x: B N D; context: B M D', or its keys and values; mask: B 1 1 M boolean. Returns B N D."""
        if self.attn1 is not None and self.norm1 is not None:
            x = x + self.attn1(self.norm1(x), rotary=rotary)
        x = x + self.attn2(self.norm2(x), context, mask)
        return x + self.ffn(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer layers over the positions of a feature map, between two 1x1 projections, with a residual.

    Where the first stage's residual blocks are replaced (Fig. 2 (e)), the input may be wider than the
    output (a concatenated skip): then the residual starts after a 1x1 channel projection.
    """

    def __init__(
        self, in_channels: int, channels: int, layers: int, groups: int, positions: bool = False, **layer: Any
    ):
        """`positions`: add sinusoidal embeddings to the tokens; `layer`: the other arguments of `TransformerLayer`."""
        super().__init__()
        self.positions = positions
        self.channel_proj = nn.Conv2d(in_channels, channels, 1) if in_channels != channels else nn.Identity()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.layers = nn.ModuleList(TransformerLayer(channels, **layer) for _ in range(layers))
        self.proj_out = nn.Linear(channels, channels)

    def key_values(self, context: torch.Tensor) -> list[KeyValue]:
        """Each layer's cross-attention keys and values of B M D' states; `forward` accepts them in place of these."""
        return [cast(TransformerLayer, layer).attn2.key_value(context) for layer in self.layers]

    def forward(
        self,
        x: torch.Tensor,
        context: torch.Tensor | list[KeyValue],
        mask: torch.Tensor | None,
        rotary: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> torch.Tensor:
        """x: B C H W; context: B M D', or its `key_values`; mask: B 1 1 M boolean. Returns B C' H W."""
        x = self.channel_proj(x)
        batch, channels, height, width = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 1).flatten(1, 2)  # B HW C
        tokens = self.proj_in(tokens)
        if self.positions:
            tokens = tokens + sinusoidal_embedding_2d(height, width, channels, x.device).to(tokens.dtype)
        for index, layer in enumerate(self.layers):
            tokens = layer(tokens, context[index] if isinstance(context, list) else context, mask, rotary)
        tokens = self.proj_out(tokens)
        return x + tokens.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
