"""SnapGenUNet: the efficient denoising UNet of Sec. 3.1.

Its defaults are the final form, rung (f) of Fig. 2: SDXL's UNet made thinner and shorter; self-attention only in the
lowest stage; separable convolutions, expanded residual blocks; gated FFN of ratio 3; multi-query attention; text
conditioning from the first stage, with transformer blocks in place of its residual blocks; RMS-normalised queries and
keys; 2D RoPE. Earlier rungs are other settings of the same class (`snapgen.models.presets.RUNGS`).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, repeat
from typing import Any, cast

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

from snapgen.models.adapters import AdapterMixin
from snapgen.models.blocks import ResidualBlock, SpatialTransformer
from snapgen.models.layers import Downsample, KeyValue, Upsample, conv3x3, rotary_embedding_2d
from snapgen.models.ranges import Flags, Positions, Positive, Ratio, Side, StageLayers, Width, Widths, within_ranges

Rotary = tuple[torch.Tensor, torch.Tensor]
# The text's keys and values for every cross-attention: by `UNetLayer` in the order of `forward`, then by layer.
TextKeyValues = list[list[KeyValue]]


def linear_velocity(sigma: torch.Tensor, spread: float) -> torch.Tensor:
    """The factor of the best linear prediction of the velocity from x_t, for data of standard deviation `spread`.

    `Cov(v, x_t) / Var(x_t)` with `x_t = (1 - sigma) x_0 + sigma eps` and `v = eps - x_0`: -1 at sigma 0, 1 at sigma 1.
    In between, it approaches 1 / sigma as `spread` shrinks; what then remains to be predicted is -x_0 / sigma, which is
    free of noise.
    """
    variance = spread**2
    return (sigma - (1 - sigma) * variance) / ((1 - sigma).square() * variance + sigma.square())


class UNetLayer(nn.Module):
    """One position of the UNet: a residual block, a spatial transformer, or the first followed by the second."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        time_dim: int,
        groups: int,
        residual: dict[str, Any] | None,  # arguments of the residual block; None: no such block
        layers: int,  # layers of the transformer; 0: no transformer
        transformer: dict[str, Any],
    ):
        super().__init__()
        self.residual = None
        self.transformer = None
        if residual is not None:
            self.residual = ResidualBlock(in_channels, channels, time_dim, groups, **residual)
            in_channels = channels
        if layers:
            self.transformer = SpatialTransformer(in_channels, channels, layers, groups, **transformer)

    def forward(
        self,
        x: torch.Tensor,
        time: torch.Tensor,
        context: torch.Tensor | list[KeyValue],
        mask: torch.Tensor | None,
        rotary: Rotary | None,
    ) -> torch.Tensor:
        """x: B C H W; time: B T or 1 T; context: B M D or its keys and values; mask: B 1 1 M boolean.

        Returns B C' H W.
        """
        if self.residual is not None:
            x = self.residual(x, time)
        return x if self.transformer is None else self.transformer(x, context, mask, rotary)


class SnapGenUNet(ModelMixin, ConfigMixin, AdapterMixin):
    """Predicts the velocity `eps - x_0` (Eq. 2) of a noisy latent, given the time and text states.

    The arguments are the configuration; `snapgen.models.presets` has the named ones.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["UNetLayer"]  # by `device_map`
    _repeated_blocks = ["TransformerLayer"]  # for `compile_repeated_blocks`: one graph per width
    # The children that group offloading moves by themselves; the others stay for the whole of `forward`.
    _group_offload_block_modules = ["conv_in", "down", "mid", "mid_residual", "up", "conv_out"]

    @register_to_config
    @within_ranges
    def __init__(
        self,
        sample_size: Side = 128,  # intended height and width of the latent; others work
        in_channels: Width = 16,  # latent channels
        out_channels: Width = 16,
        block_out_channels: Widths = (256, 512, 896),  # width of each stage, high to low resolution
        transformer_layers: StageLayers = (1, 2, 4),  # at each position of a stage; 0: no transformer (e)
        self_attention: Flags = (False, False, True),  # per stage (b)
        residual_blocks: Flags = (False, True, True),  # per stage (e)
        layers_per_block: Positions = 2,  # positions per stage going down; one more going up
        cross_attention_dim: Width = 2304,  # width of the text states
        # Width of the CLIPs' pooled vector, added to the time embedding (2048 in Stable Diffusion 3); None: not used.
        # The paper does not mention it.
        pooled_projection_dim: Width | None = None,
        attention_head_dim: Width = 64,  # width of a head
        ffn_ratio: Ratio = 3,  # hidden width of the FFN over its width, before gating (d)
        separable: bool = True,  # every 3x3 convolution (c)
        expansion: Ratio | None = 2,  # hidden width of a residual block over its input width; None: the output's (c)
        multi_query: bool = True,  # one key and value head for all query heads (e')
        qk_norm: bool = True,  # RMS-normalised queries and keys (f)
        rotary: bool = True,  # 2D RoPE in self-attention (f)
        positions: bool = False,  # sinusoidal embeddings in every transformer: not in the paper, for the preset `mini`
        skip_spread: Positive | None = None,  # see `linear_velocity`: not in the paper, for the preset `mini`
        time_embedding_dim: Width = 512,
        norm_num_groups: Width = 32,
    ):
        super().__init__()
        stages = len(block_out_channels)
        for name, values in (
            ("transformer_layers", transformer_layers),
            ("self_attention", self_attention),
            ("residual_blocks", residual_blocks),
        ):
            if len(values) != stages:
                raise ValueError(f"{name} has {len(values)} entries, block_out_channels {stages}: one a stage expected")

        convolution: dict[str, Any] = {"separable": separable, "expansion": expansion}

        def layer(in_width: int, stage: int, residual: bool) -> UNetLayer:
            transformer = {
                "context_dim": cross_attention_dim,
                "head_dim": attention_head_dim,
                "self_attention": self_attention[stage],
                "ffn_ratio": ffn_ratio,
                "multi_query": multi_query,
                "qk_norm": qk_norm,
                "positions": positions,
            }
            return UNetLayer(
                in_width,
                block_out_channels[stage],
                time_embedding_dim,
                norm_num_groups,
                convolution if residual else None,
                transformer_layers[stage],
                transformer,
            )

        self.time_proj = Timesteps(block_out_channels[0], flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(block_out_channels[0], time_embedding_dim)
        self.pooled_embedding = None
        if pooled_projection_dim is not None:
            self.pooled_embedding = TimestepEmbedding(pooled_projection_dim, time_embedding_dim)
        self.conv_in = conv3x3(in_channels, block_out_channels[0], separable)

        # Down. `skips` mirrors what forward pushes: the input, every layer, every downsampling.
        skips = [block_out_channels[0]]
        width = block_out_channels[0]
        self.down = nn.ModuleList()
        self.downsamplers = nn.ModuleList()
        for stage, channels in enumerate(block_out_channels):
            blocks = nn.ModuleList()
            for _ in range(layers_per_block):
                blocks.append(layer(width, stage, residual_blocks[stage]))
                width = channels
                skips.append(width)
            self.down.append(blocks)
            if stage < stages - 1:
                self.downsamplers.append(Downsample(width, separable))
                skips.append(width)

        last = stages - 1
        self.mid = layer(width, last, residual=True)
        self.mid_residual = ResidualBlock(width, width, time_embedding_dim, norm_num_groups, **convolution)

        # Up: one layer for every skip.
        self.up = nn.ModuleList()
        self.upsamplers = nn.ModuleList()
        for stage in reversed(range(stages)):
            blocks = nn.ModuleList()
            for _ in range(layers_per_block + 1):
                blocks.append(layer(width + skips.pop(), stage, residual_blocks[stage]))
                width = block_out_channels[stage]
            self.up.append(blocks)
            if stage > 0:
                self.upsamplers.append(Upsample(width, width, separable))

        self.norm_out = nn.GroupNorm(norm_num_groups, width, eps=1e-5)
        self.conv_out = conv3x3(width, out_channels, separable)
        self.gradient_checkpointing = False

    @apply_forward_hook
    def text_key_values(self, encoder_hidden_states: torch.Tensor) -> TextKeyValues | torch.Tensor:
        """The keys and values of text states B M D: projected once here instead of by `forward` at every step.

        The states themselves if diffusers' hooks (group offloading, layerwise casting) prepare the weights: they do it
        around `forward` alone.
        """
        if any(hasattr(module, "_diffusers_hook") for module in self.modules()):
            return encoder_hidden_states
        blocks = cast(Iterable[UNetLayer], [*chain(*self.down), self.mid, *chain(*self.up)])
        return [
            [] if block.transformer is None else block.transformer.key_values(encoder_hidden_states) for block in blocks
        ]

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        encoder_hidden_states: torch.Tensor | TextKeyValues,
        encoder_attention_mask: torch.Tensor | None = None,
        return_dict: bool = True,
        pooled_projections: torch.Tensor | None = None,
        taps: tuple[int, ...] | None = None,
    ) -> UNet2DConditionOutput | tuple[Any, ...]:
        """One evaluation of `v_theta(x_t, t)`.

        Args:
            sample: noisy latent x_t, B C H W; any height and width.
            timestep: 1000 * sigma, in [0, 1000]; a number or a tensor of shape () or (B,).
            encoder_hidden_states: text states, B M D, or their `text_key_values`.
            encoder_attention_mask: B M, True or 1 where a text token may be attended to; every row needs one.
            return_dict: False returns a plain tuple, as diffusers' models do.
            pooled_projections: the CLIPs' pooled vector, B P, for a UNet with `pooled_projection_dim`.
            taps: indices of the layers (down, middle, up) whose features B C' H' W' are returned too; -1 is the last
                (Eq. 5). The result is then a tuple of the velocity and the list of features.

        Returns: the velocity, of the same shape as `sample`.
        """
        timestep = torch.as_tensor(timestep, device=sample.device).reshape(-1)  # B, or 1 for all samples alike
        frequencies = self.time_proj(timestep).to(sample.dtype)
        time = self.time_embedding(frequencies)
        if self.pooled_embedding is not None:
            if pooled_projections is None:
                raise ValueError("this UNet reads a pooled text vector: pooled_projections expected")
            time = time + self.pooled_embedding(pooled_projections)
        time = nn.functional.silu(time)  # activated once here, for all blocks

        mask = None
        if encoder_attention_mask is not None:
            mask = encoder_attention_mask.bool()[:, None, None, :]  # B 1 1 M

        given = encoder_hidden_states
        contexts = iter(given) if isinstance(given, list) else repeat(given)

        features: list[torch.Tensor] = []

        def run(layer: nn.Module, x: torch.Tensor, rotary: Rotary | None) -> torch.Tensor:
            context = next(contexts)
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(layer, x, time, context, mask, rotary)
            else:
                x = layer(x, time, context, mask, rotary)
            if taps is not None:
                features.append(x)
            return x

        def rotary_of(x: torch.Tensor, stage: int) -> Rotary | None:
            if not (self.config.rotary and self.config.self_attention[stage]):
                return None
            return rotary_embedding_2d(x.shape[-2], x.shape[-1], self.config.attention_head_dim, x.device)

        x = self.conv_in(sample)  # B C0 H W
        skips = [x]
        stages = len(self.down)
        for stage, blocks in enumerate(self.down):
            rotary = rotary_of(x, stage)
            for block in cast(Iterable[nn.Module], blocks):
                x = run(block, x, rotary)
                skips.append(x)
            if stage < stages - 1:
                x = self.downsamplers[stage](x)
                skips.append(x)

        x = run(self.mid, x, rotary_of(x, stages - 1))
        x = self.mid_residual(x, time)

        for index, blocks in enumerate(self.up):
            rotary = rotary_of(x, stages - 1 - index)
            for block in cast(Iterable[nn.Module], blocks):
                x = run(block, torch.cat([x, skips.pop().to(x.device)], dim=1), rotary)
            if index < stages - 1:
                x = self.upsamplers[index](x, size=tuple(skips[-1].shape[-2:]))

        velocity = self.conv_out(nn.functional.silu(self.norm_out(x)))
        if self.config.skip_spread is not None:
            share = linear_velocity(timestep.float() / 1000, self.config.skip_spread)
            velocity = velocity + (share[:, None, None, None].to(sample.dtype) * sample).to(velocity.device)
        if taps is not None:
            return velocity, [features[tap] for tap in taps]
        return UNet2DConditionOutput(sample=velocity) if return_dict else (velocity,)
