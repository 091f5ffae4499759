"""An exact rewrite of the networks for one size, for delegates that want static shapes and few kinds of operations.

The same weights, in another arithmetic: convolutions, linear layers, products of matrices, softmax, elementwise
operations, means over height and width, reshapes, permutations and concatenations, and nothing else. Whatever depends
on the size alone (RoPE, positions) is a constant. Each class here takes the trained module that it replaces, and shares
its weights.

The batch is 1. Norms are plugged in (`Norms`), because runtimes differ in the form of a mean that they compute well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import Tensor, nn

from snapgen.models.autoencoder import SnapGenAutoencoder, TinyBlock, TinyStage
from snapgen.models.blocks import ResidualBlock, SpatialTransformer, TransformerLayer
from snapgen.models.layers import Attention, GatedFeedForward, Upsample, rotary_embedding_2d, sinusoidal_embedding_2d
from snapgen.models.unet import SnapGenUNet, UNetLayer, linear_velocity

Norms = Callable[[nn.Module], nn.Module]  # a trained norm -> the module that computes it
MASKED = 1e4  # subtracted from the scores of masked tokens: exp of it is zero, and fp16 holds it


def linear_norm(norm: nn.Module) -> nn.Module:
    """The default `Norms`: means over features are linear layers, those of a group are over height and width."""
    if isinstance(norm, nn.GroupNorm):
        return FixedGroupNorm(norm)
    if isinstance(norm, (nn.LayerNorm, nn.RMSNorm)):
        return FixedFeatureNorm(norm)
    return norm


def native_norm(norm: nn.Module) -> nn.Module:
    """The `Norms` of a runtime that has norms of its own."""
    return norm


class FixedGroupNorm(nn.Module):
    """GroupNorm by means over the last two of four axes.

    First over each channel, then over those of a group: a delegate that adds up all numbers of a group, one after the
    other, loses fp32's last digits, the more the larger the picture (with XNNPACK, 1.5e-5 at 256 px, and so 7e-7).
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = (_constant(part.detach()[:, None, None]) for part in (norm.weight, norm.bias))

    def forward(self, x: Tensor) -> Tensor:
        """1 C H W -> 1 C H W."""
        _, channels, height, width = x.shape
        members = channels // self.groups

        def mean(values: Tensor) -> Tensor:
            """1 G C/G HW -> 1 G 1 1."""
            of_channels = values.reshape(x.shape).mean((2, 3), keepdim=True)
            return of_channels.reshape(1, self.groups, members, 1).mean((2, 3), keepdim=True)

        grouped = x.reshape(1, self.groups, members, height * width)
        grouped = grouped - mean(grouped)
        normal = grouped * (mean(grouped * grouped) + self.eps).rsqrt()
        return normal.reshape(x.shape) * self.weight + self.bias


class FixedFeatureNorm(nn.Module):
    """LayerNorm or RMSNorm, whose means over features are a linear layer."""

    def __init__(self, norm: nn.LayerNorm | nn.RMSNorm) -> None:
        super().__init__()
        assert norm.eps is not None
        (width,) = norm.normalized_shape
        self.eps, self.centred = norm.eps, isinstance(norm, nn.LayerNorm)
        self.mean = _linear(torch.full((1, width), 1 / width))
        self.weight, self.bias = norm.weight, norm.bias if isinstance(norm, nn.LayerNorm) else None

    def forward(self, x: Tensor) -> Tensor:
        """1 N D -> 1 N D."""
        if self.centred:
            x = x - self.mean(x)
        normal = x * (self.mean(x * x) + self.eps).rsqrt() * self.weight
        return normal if self.bias is None else normal + self.bias


def silu(x: Tensor) -> Tensor:
    """SiLU, written out."""
    return x * x.sigmoid()


def pixel_shuffle(x: Tensor) -> Tensor:
    """1 4C H W -> 1 C 2H 2W, as `nn.PixelShuffle(2)`."""
    _, channels, height, width = x.shape
    pixels = x.reshape(channels // 4, 2, 2, height, width).permute(0, 3, 1, 4, 2)  # C H 2 W 2
    return pixels.reshape(1, channels // 4, 2 * height, 2 * width)


class FixedUpsample(nn.Module):
    """`Upsample` by two: a product with ones repeats every value along both sides."""

    def __init__(self, upsample: Upsample) -> None:
        super().__init__()
        self.ones, self.conv = _constant(torch.ones(1, 2, 1, 2)), upsample.conv

    def forward(self, x: Tensor) -> Tensor:
        """1 C H W -> 1 C' 2H 2W."""
        _, channels, height, width = x.shape
        repeated = x.reshape(channels * height, 1, width, 1) * self.ones  # CH 2 W 2
        return self.conv(repeated.reshape(1, channels, 2 * height, 2 * width))


class FixedRotary(nn.Module):
    """2D RoPE of a grid: `x * cos + turned * sin`, where a constant matrix turns every pair by a right angle."""

    def __init__(self, height: int, width: int, head_dim: int) -> None:
        super().__init__()
        cos, sin = rotary_embedding_2d(height, width, head_dim, torch.device("cpu"))  # N head_dim/2
        self.cos, self.sin = (_constant(torch.cat([part, part], dim=-1)[:, None]) for part in (cos, sin))
        half = torch.eye(head_dim // 2)
        zero = torch.zeros_like(half)
        self.turn = _linear(torch.cat([torch.cat([zero, -half], dim=1), torch.cat([half, zero], dim=1)]))

    def forward(self, x: Tensor) -> Tensor:
        """1 N*heads head_dim -> the same shape, rotated."""
        shape = (len(self.cos), -1, x.shape[-1])  # N heads head_dim
        turned = self.turn(x).reshape(shape) * self.sin
        return (x.reshape(shape) * self.cos + turned).reshape(x.shape)


class FixedAttention(nn.Module):
    """`Attention` as two products of matrices, with a mask that is added to the scores."""

    def __init__(self, attention: Attention, rotary: FixedRotary | None, norms: Norms) -> None:
        super().__init__()
        self.kv_heads, self.head_dim = attention.kv_heads, attention.head_dim
        self.to_q, self.to_out = attention.to_q, attention.to_out
        self.to_k, self.to_v = _halves(attention.to_kv)
        self.norm_q, self.norm_k = norms(attention.norm_q), norms(attention.norm_k)
        self.rotary = nn.Identity() if rotary is None else rotary

    def _by_head(self, x: Tensor) -> Tensor:
        """... head_dim -> kv_heads T head_dim."""
        if self.kv_heads == 1:
            return x.reshape(1, -1, self.head_dim)
        return x.reshape(-1, self.kv_heads, self.head_dim).permute(1, 0, 2)

    def forward(self, x: Tensor, context: Tensor, bias: Tensor | None = None) -> Tensor:
        """x: 1 N D; context: 1 M D' (x itself in self-attention); bias: 1 1 M. Returns 1 N D."""
        q = self.rotary(self.norm_q(self.to_q(x).reshape(1, -1, self.head_dim)))  # 1 N*heads head_dim
        k = self.rotary(self.norm_k(self.to_k(context).reshape(1, -1, self.head_dim)))
        keys = self._by_head(k * self.head_dim**-0.5).permute(0, 2, 1)
        scores = torch.bmm(self._by_head(q), keys)  # kv_heads N*heads/kv_heads M
        weights = (scores if bias is None else scores + bias).softmax(dim=-1)
        out = torch.bmm(weights, self._by_head(self.to_v(context)))
        out = out if self.kv_heads == 1 else out.permute(1, 0, 2)
        return self.to_out(out.reshape(x.shape))


class FixedFeedForward(nn.Module):
    """`GatedFeedForward` with a linear layer each for value and gate."""

    def __init__(self, ffn: GatedFeedForward) -> None:
        super().__init__()
        self.value, self.gate = _halves(ffn.proj_in)
        self.proj_out = ffn.proj_out

    def forward(self, x: Tensor) -> Tensor:
        """1 N D -> 1 N D."""
        return self.proj_out(self.value(x) * nn.functional.gelu(self.gate(x)))


class FixedTransformerLayer(nn.Module):
    """`TransformerLayer`."""

    def __init__(self, layer: TransformerLayer, rotary: FixedRotary | None, norms: Norms) -> None:
        super().__init__()
        self.norm1 = self.attn1 = None
        if layer.attn1 is not None and layer.norm1 is not None:
            self.norm1, self.attn1 = norms(layer.norm1), FixedAttention(layer.attn1, rotary, norms)
        self.norm2, self.attn2 = norms(layer.norm2), FixedAttention(layer.attn2, None, norms)
        self.norm3, self.ffn = norms(layer.norm3), FixedFeedForward(layer.ffn)

    def forward(self, x: Tensor, states: Tensor, bias: Tensor) -> Tensor:
        """x: 1 N D; states: 1 M D'; bias: 1 1 M. Returns 1 N D."""
        if self.attn1 is not None and self.norm1 is not None:
            normal = self.norm1(x)
            x = x + self.attn1(normal, normal)
        x = x + self.attn2(self.norm2(x), states, bias)
        return x + self.ffn(self.norm3(x))


class FixedSpatialTransformer(nn.Module):
    """`SpatialTransformer` over a grid of `height` x `width` positions."""

    def __init__(
        self, block: SpatialTransformer, height: int, width: int, rotary: FixedRotary | None, norms: Norms
    ) -> None:
        super().__init__()
        self.channel_proj, self.norm = block.channel_proj, norms(block.norm)
        self.proj_in, self.proj_out = block.proj_in, block.proj_out
        self.positions: Tensor | None = None
        if block.positions:
            dim = block.proj_in.out_features
            self.positions = _constant(sinusoidal_embedding_2d(height, width, dim, torch.device("cpu")))
        layers = cast(Iterable[TransformerLayer], block.layers)
        self.layers = nn.ModuleList(FixedTransformerLayer(layer, rotary, norms) for layer in layers)

    def forward(self, x: Tensor, states: Tensor, bias: Tensor) -> Tensor:
        """x: 1 C H W; states: 1 M D; bias: 1 1 M. Returns 1 C' H W."""
        x = self.channel_proj(x)
        _, channels, height, width = x.shape
        tokens = self.proj_in(self.norm(x).permute(0, 2, 3, 1).reshape(1, height * width, channels))
        if self.positions is not None:
            tokens = tokens + self.positions
        for layer in self.layers:
            tokens = layer(tokens, states, bias)
        return x + self.proj_out(tokens).reshape(1, height, width, channels).permute(0, 3, 1, 2)


class FixedResidualBlock(nn.Module):
    """`ResidualBlock`."""

    def __init__(self, block: ResidualBlock, norms: Norms) -> None:
        super().__init__()
        self.norm1, self.norm2 = norms(block.norm1), norms(block.norm2)
        self.conv1, self.conv2, self.shortcut = block.conv1, block.conv2, block.shortcut
        self.time_proj = block.time_proj

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x: 1 C H W; time: 1 T, already activated. Returns 1 C' H W."""
        h = self.conv1(silu(self.norm1(x)))
        h = h + self.time_proj(time).reshape(1, -1, 1, 1)
        return self.shortcut(x) + self.conv2(silu(self.norm2(h)))


class FixedUNetLayer(nn.Module):
    """`UNetLayer` at `height` x `width` positions."""

    def __init__(self, layer: UNetLayer, height: int, width: int, rotary: FixedRotary | None, norms: Norms) -> None:
        super().__init__()
        self.residual = None if layer.residual is None else FixedResidualBlock(layer.residual, norms)
        self.transformer = None
        if layer.transformer is not None:
            self.transformer = FixedSpatialTransformer(layer.transformer, height, width, rotary, norms)

    def forward(self, x: Tensor, time: Tensor, states: Tensor, bias: Tensor) -> Tensor:
        """x: 1 C H W; time: 1 T; states: 1 M D; bias: 1 1 M. Returns 1 C' H W."""
        if self.residual is not None:
            x = self.residual(x, time)
        return x if self.transformer is None else self.transformer(x, states, bias)


class FixedTime(nn.Module):
    """The embedding of the noise level, `time_proj` and `time_embedding` of a UNet."""

    def __init__(self, unet: SnapGenUNet) -> None:
        super().__init__()
        half = unet.time_proj.num_channels // 2
        exponents = -math.log(10_000) * torch.arange(half, dtype=torch.float32) / half
        self.frequencies = _constant(exponents.exp()[None])
        self.embedding = unet.time_embedding

    def forward(self, timestep: Tensor) -> Tensor:
        """1000 sigma, (1,) -> 1 T."""
        phases = timestep.reshape(1, 1) * self.frequencies
        return self.embedding(torch.cat([phases.cos(), phases.sin()], dim=1))


class FixedUNet(nn.Module):
    """`SnapGenUNet` for one latent of `height` x `width` positions."""

    def __init__(self, unet: SnapGenUNet, height: int, width: int, norms: Norms = linear_norm) -> None:
        """ValueError if a side is not divisible by what the stages halve it to."""
        super().__init__()
        stages = len(unet.down)
        multiple = 2 ** (stages - 1)
        if height % multiple or width % multiple:
            raise ValueError(
                f"the latent has {height} x {width} positions, expected multiples of {multiple}: "
                f"the UNet halves them {stages - 1} times"
            )
        config = unet.config
        sides = [(height >> stage, width >> stage) for stage in range(stages)]

        def turns(stage: int) -> FixedRotary | None:
            wanted = config.rotary and config.self_attention[stage]
            return FixedRotary(*sides[stage], config.attention_head_dim) if wanted else None

        rotaries = [turns(stage) for stage in range(stages)]

        def layers(blocks: nn.Module, stage: int) -> nn.ModuleList:
            found = cast(Iterable[UNetLayer], blocks)
            return nn.ModuleList(FixedUNetLayer(block, *sides[stage], rotaries[stage], norms) for block in found)

        last = stages - 1
        self.time, self.pooled_embedding = FixedTime(unet), unet.pooled_embedding
        self.conv_in, self.conv_out, self.norm_out = unet.conv_in, unet.conv_out, norms(unet.norm_out)
        self.down = nn.ModuleList(layers(blocks, stage) for stage, blocks in enumerate(unet.down))
        self.downsamplers = unet.downsamplers
        self.mid = FixedUNetLayer(unet.mid, *sides[last], rotaries[last], norms)
        self.mid_residual = FixedResidualBlock(unet.mid_residual, norms)
        self.up = nn.ModuleList(layers(blocks, last - index) for index, blocks in enumerate(unet.up))
        self.upsamplers = nn.ModuleList(FixedUpsample(cast(Upsample, upsampler)) for upsampler in unet.upsamplers)
        self.skip_spread = config.skip_spread

    def forward(
        self, sample: Tensor, timestep: Tensor, states: Tensor, mask: Tensor, pooled: Tensor | None = None
    ) -> tuple[Tensor]:
        """1 C h w; 1000 sigma, (1,); 1 M D; 1 M, 1.0 where a token is seen, else 0.0; 1 P -> the velocity 1 C h w."""
        time = self.time(timestep)
        if self.pooled_embedding is not None and pooled is not None:
            time = time + self.pooled_embedding(pooled)
        time = silu(time)
        bias = (mask.reshape(1, 1, -1) - 1.0) * MASKED

        x = self.conv_in(sample)
        skips = [x]
        for stage, blocks in enumerate(self.down):
            for block in cast(Iterable[nn.Module], blocks):
                x = block(x, time, states, bias)
                skips.append(x)
            if stage < len(self.downsamplers):
                x = self.downsamplers[stage](x)
                skips.append(x)
        x = self.mid_residual(self.mid(x, time, states, bias), time)
        for stage, blocks in enumerate(self.up):
            for block in cast(Iterable[nn.Module], blocks):
                x = block(torch.cat([x, skips.pop()], dim=1), time, states, bias)
            if stage < len(self.upsamplers):
                x = self.upsamplers[stage](x)
        velocity = self.conv_out(silu(self.norm_out(x)))
        if self.skip_spread is not None:
            share = linear_velocity(timestep.reshape(1, 1, 1, 1) / 1000, self.skip_spread)
            velocity = velocity + share * sample
        return (velocity,)


class FixedTinyBlock(nn.Module):
    """`TinyBlock`."""

    def __init__(self, block: TinyBlock, norms: Norms) -> None:
        super().__init__()
        self.norm, self.expand, self.project = norms(block.norm), block.expand, block.project

    def forward(self, x: Tensor) -> Tensor:
        """1 C H W -> 1 C H W."""
        return self.project(self.expand(self.norm(x)).relu()) + x


class FixedDecoder(nn.Module):
    """The decoder of `SnapGenAutoencoder`, from latents as diffusion has them."""

    def __init__(self, vae: SnapGenAutoencoder, norms: Norms = linear_norm) -> None:
        super().__init__()
        self.scaling, self.shift = vae.config.scaling_factor, vae.config.shift_factor
        self.post_quant_conv, decoder = vae.post_quant_conv, vae.decoder
        self.conv_in, self.conv_out = decoder.conv_in, decoder.conv_out
        self.stages, self.upsampled = nn.ModuleList(), nn.ModuleList()
        for stage in cast(Iterable[TinyStage], decoder.stages):
            blocks = cast(Iterable[TinyBlock], stage.blocks)
            self.stages.append(nn.Sequential(*(FixedTinyBlock(block, norms) for block in blocks)))
            if stage.upsample is not None:
                self.upsampled.append(stage.upsample[0])

    def forward(self, latents: Tensor) -> tuple[Tensor]:
        """1 C h w -> pictures 1 3 H W in about [-1, 1]."""
        z = latents / self.scaling + self.shift
        x = self.conv_in(z if self.post_quant_conv is None else self.post_quant_conv(z))
        for index, blocks in enumerate(self.stages):
            x = blocks(x)
            if index < len(self.upsampled):
                x = pixel_shuffle(self.upsampled[index](x))
        return (self.conv_out(x.relu()),)


def _constant(tensor: Tensor) -> nn.Parameter:
    """`tensor` as a part of a module that is not trained."""
    return nn.Parameter(tensor.contiguous(), requires_grad=False)


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """The linear layer of these weights."""
    rows, columns = weight.shape
    layer = nn.Linear(columns, rows, bias=bias is not None, device="meta")
    layer.weight = _constant(weight)
    if bias is not None:
        layer.bias = _constant(bias)
    return layer


def _halves(layer: nn.Linear) -> tuple[nn.Linear, nn.Linear]:
    """Two linear layers for the first and the second half of the outputs of one."""
    weights = layer.weight.detach().chunk(2)
    biases = (None, None) if layer.bias is None else layer.bias.detach().chunk(2)
    first, second = (_linear(weight, bias) for weight, bias in zip(weights, biases, strict=True))
    return first, second
