"""SnapGenUNet: the efficient denoising UNet of Sec. 3.1, in its final form, rung (f) of Fig. 2.

SDXL's UNet made thin and short; self-attention only in the lowest stage; every convolution separable,
residual blocks expanded; gated FFN of ratio 3; multi-query attention; text conditions from the first
stage, whose residual blocks are transformer blocks; RMS-normalised queries and keys; 2D RoPE.
"""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import nn

from snapgen.models.blocks import ResidualBlock, SpatialTransformer
from snapgen.models.layers import Downsample, SeparableConv2d, Upsample, rotary_embedding_2d

Rotary = tuple[torch.Tensor, torch.Tensor]


class UNetLayer(nn.Module):
    """One position of the UNet: a residual block (where the stage has them), then a spatial transformer."""

    def __init__(self, in_channels: int, channels: int, time_dim: int, residual: bool, **transformer):
        super().__init__()
        groups = transformer["groups"]
        expansion = transformer.pop("expansion")
        self.residual = ResidualBlock(in_channels, channels, time_dim, expansion, groups) if residual else None
        self.transformer = SpatialTransformer(channels if residual else in_channels, channels, **transformer)

    def forward(
        self,
        x: torch.Tensor,
        time: torch.Tensor,
        context: torch.Tensor,
        mask: torch.Tensor | None,
        rotary: Rotary | None,
    ) -> torch.Tensor:
        if self.residual is not None:
            x = self.residual(x, time)
        return self.transformer(x, context, mask, rotary)


class SnapGenUNet(ModelMixin, ConfigMixin):
    """Predicts the velocity `eps - x_0` (Eq. 2) of a noisy latent, given the time and text states.

    The arguments are the configuration; `snapgen.models.presets` names the ones that are used.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["UNetLayer"]
    _group_offload_block_modules = ["conv_in", "down", "up", "conv_out"]  # children that hold blocks of their own

    @register_to_config
    def __init__(
        self,
        sample_size: int = 128,  # height and width of the latent it is made for; others work
        in_channels: int = 16,  # latent channels
        out_channels: int = 16,
        block_out_channels: tuple[int, ...] = (256, 512, 896),  # width of each stage, high to low resolution
        transformer_layers: tuple[int, ...] = (1, 2, 4),  # transformer layers at each position of a stage
        self_attention: tuple[bool, ...] = (False, False, True),  # per stage (b)
        residual_blocks: tuple[bool, ...] = (False, True, True),  # per stage (e)
        layers_per_block: int = 2,  # positions per stage going down; one more going up
        cross_attention_dim: int = 2304,  # width of the text states
        attention_head_dim: int = 64,  # width of a head; keys and values have one head (e')
        ffn_ratio: int = 3,  # hidden width of the FFN over its width, before gating (d)
        expansion: int = 2,  # hidden width of a residual block over its input width (c)
        time_embedding_dim: int = 512,
        norm_num_groups: int = 32,
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

        def layer(in_width: int, stage: int, residual: bool) -> UNetLayer:
            return UNetLayer(
                in_width,
                block_out_channels[stage],
                time_embedding_dim,
                residual,
                layers=transformer_layers[stage],
                context_dim=cross_attention_dim,
                head_dim=attention_head_dim,
                ffn_ratio=ffn_ratio,
                self_attention=self_attention[stage],
                groups=norm_num_groups,
                expansion=expansion,
            )

        self.time_proj = Timesteps(block_out_channels[0], flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(block_out_channels[0], time_embedding_dim)
        self.conv_in = SeparableConv2d(in_channels, block_out_channels[0])

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
                self.downsamplers.append(Downsample(width))
                skips.append(width)

        last = stages - 1
        self.mid = layer(width, last, residual=True)
        self.mid_residual = ResidualBlock(width, width, time_embedding_dim, expansion, norm_num_groups)

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
                self.upsamplers.append(Upsample(width, width))

        self.norm_out = nn.GroupNorm(norm_num_groups, width, eps=1e-5)
        self.conv_out = SeparableConv2d(width, out_channels)
        self.gradient_checkpointing = False

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DConditionOutput | tuple[torch.Tensor]:
        """One evaluation of `v_theta(x_t, t)`.

        Args:
            sample: noisy latent x_t, B C H W; any height and width.
            timestep: 1000 * sigma, in [0, 1000]; a number or a tensor of shape () or (B,).
            encoder_hidden_states: text states, B M D.
            encoder_attention_mask: B M, True or 1 where a text token may be attended; every row needs one.
            return_dict: False returns a plain tuple, as diffusers' models do.

        Returns: the velocity, shaped as `sample`.
        """
        timestep = torch.as_tensor(timestep, device=sample.device).reshape(-1)  # B, or 1 for all samples alike
        frequencies = self.time_proj(timestep).to(sample.dtype)
        time = nn.functional.silu(self.time_embedding(frequencies))  # every block starts by activating it: do it once

        mask = None
        if encoder_attention_mask is not None:
            mask = encoder_attention_mask.bool()[:, None, None, :]  # B 1 1 M

        def run(layer: nn.Module, x: torch.Tensor, rotary: Rotary | None) -> torch.Tensor:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                return self._gradient_checkpointing_func(layer, x, time, encoder_hidden_states, mask, rotary)
            return layer(x, time, encoder_hidden_states, mask, rotary)

        def rotary_of(x: torch.Tensor, stage: int) -> Rotary | None:
            if not self.config.self_attention[stage]:
                return None
            return rotary_embedding_2d(x.shape[-2], x.shape[-1], self.config.attention_head_dim, x.device)

        x = self.conv_in(sample)  # B C0 H W
        skips = [x]
        stages = len(self.down)
        for stage, blocks in enumerate(self.down):
            rotary = rotary_of(x, stage)
            for block in blocks:
                x = run(block, x, rotary)
                skips.append(x)
            if stage < stages - 1:
                x = self.downsamplers[stage](x)
                skips.append(x)

        x = run(self.mid, x, rotary_of(x, stages - 1))
        x = self.mid_residual(x, time)

        for index, blocks in enumerate(self.up):
            rotary = rotary_of(x, stages - 1 - index)
            for block in blocks:
                x = run(block, torch.cat([x, skips.pop()], dim=1), rotary)
            if index < stages - 1:
                x = self.upsamplers[index](x, size=tuple(skips[-1].shape[-2:]))

        velocity = self.conv_out(nn.functional.silu(self.norm_out(x)))
        return UNet2DConditionOutput(sample=velocity) if return_dict else (velocity,)
