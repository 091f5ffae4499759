"""SnapGenAutoencoder: SD3's encoder with the tiny decoder of Sec. 3.2 (Fig. 4 (b), Tab. 2).

The tiny decoder has no attention and no conv shortcuts; its blocks are separable and thin; the upsampling
layers change the width; only the first block of each stage has a GroupNorm: enough to keep colours stable, few
enough to be fast at high resolution.

The paper leaves the arrangement of the convolutions open. At high resolution memory traffic takes the time, not
arithmetic. So upsampling is sub-pixel convolution (Shi et al. 2016), which needs no wide map at the higher resolution;
a block has one depthwise convolution and one cheap activation; and operations work in place where they can
(`benchmarks/decoder_search.py`).

Like the paper's, it has fewer blocks at high resolution. Of the 93 shapes of this make that have the paper's size and
keep that rule, the preset was chosen by latency and by equal short trainings (`benchmarks/decoder_shapes.py`). A shape
with most blocks at half size, widths (192, 224, 192, 64) and blocks (1, 1, 4, 1), takes 6 % less time and is no better:
23.97 against 24.08 dB, where seeds differ by 0.4 dB.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import AutoencoderMixin, DecoderOutput, DiagonalGaussianDistribution, Encoder
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

from snapgen.models.layers import RESIDUAL_GAIN, Chain, SeparableConv2d, pointwise
from snapgen.models.ranges import Count, Counts, Number, Positive, Ratio, Width, Widths, within_ranges
from snapgen.models.tiling import in_tiles

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

DECODING = ("decoder.", "post_quant_conv.")  # prefixes of the weights that do not affect the latents


class TinyBlock(nn.Module):
    """A residual block of constant width: [GN] - DW3x3 - PW(expand) - ReLU - PW."""

    def __init__(self, channels: int, expansion: int, groups: int | None):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6) if groups else nn.Identity()
        self.expand = SeparableConv2d(channels, expansion * channels)
        self.project = pointwise(expansion * channels, channels, gain=RESIDUAL_GAIN)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """B C H W -> B C H W."""
        hidden = F.relu(self.expand(self.norm(x)), inplace=True)
        return self.project(hidden).add_(x)


class SubPixelUpsample(Chain):
    """Doubles height and width: a separable convolution to four times the channels, then pixel shuffle.

    The four pixels of a position are initialised alike, so that it starts as nearest-neighbour upsampling, without
    checkerboards (Aitken et al. 2017).
    """

    def __init__(self, in_channels: int, out_channels: int):
        conv = SeparableConv2d(in_channels, 4 * out_channels)
        pointwise_weight = conv.state_dict()["1.weight"]
        pointwise_weight.copy_(pointwise_weight[::4].repeat_interleave(4, dim=0))
        super().__init__(conv, nn.PixelShuffle(2))


class TinyStage(nn.Module):
    """The blocks of one resolution, the first with a GroupNorm, then (except in the last stage) upsampling.

    The norm is inside the residual branch: on the trunk it would remove the level of flat areas.
    """

    def __init__(self, channels: int, next_channels: int | None, blocks: int, expansion: int, groups: int):
        super().__init__()
        self.blocks = nn.Sequential(
            *(TinyBlock(channels, expansion, groups if index == 0 else None) for index in range(blocks))
        )
        self.upsample = SubPixelUpsample(channels, next_channels) if next_channels else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(x)
        return self.upsample(x) if self.upsample is not None else x


class TinyDecoder(nn.Module):
    """The tiny decoder: latents B 16 h w (unscaled) -> pictures B 3 8h 8w in about [-1, 1]."""

    def __init__(
        self,
        latent_channels: int,
        out_channels: int,
        widths: tuple[int, ...],
        blocks: tuple[int, ...],
        expansion: int,
        groups: int,
    ):
        super().__init__()
        if len(widths) != len(blocks):
            raise ValueError(f"decoder_channels has {len(widths)} entries but decoder_blocks {len(blocks)}")
        self.conv_in = SeparableConv2d(latent_channels, widths[0])
        self.stages = nn.Sequential(
            *(
                TinyStage(width, following, count, expansion, groups)
                for width, following, count in zip(widths, (*widths[1:], None), blocks, strict=True)
            )
        )
        self.conv_out = SeparableConv2d(widths[-1], out_channels)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        return self.conv_out(F.relu(self.stages(self.conv_in(latent)), inplace=True))


class SnapGenAutoencoder(ModelMixin, AutoencoderMixin, ConfigMixin):
    """Pictures to latents and back: `encode` is SD3's (diffusers' `Encoder`), `decode` is the tiny decoder.

    Diffusion works on `(z - shift_factor) * scaling_factor`; `normalize` and `denormalize` convert.

    After `enable_tiling()`, pictures larger than `tile_sample_min_size` pixels are computed in tiles of that side,
    which overlap by the share `tile_overlap_factor`. The result differs slightly, because the norms see one tile at a
    time. After `enable_slicing()`, the pictures of a batch are computed one by one.
    """

    _no_split_modules = ["ResnetBlock2D", "TinyBlock"]  # by `device_map`
    _group_offload_block_modules = ["encoder", "decoder", "post_quant_conv"]  # used by `encode` and `decode`, too

    @register_to_config
    @within_ranges
    def __init__(
        self,
        in_channels: Width = 3,
        out_channels: Width = 3,
        latent_channels: Width = 16,
        encoder_channels: Widths = (128, 256, 512, 512),  # high to low resolution; SD3's
        encoder_layers_per_block: Count = 2,
        decoder_channels: Widths = (224, 224, 192, 160),  # low to high resolution
        decoder_blocks: Counts = (2, 1, 1, 1),  # fewer at high resolution, as in the paper
        decoder_expansion: Ratio = 2,
        norm_num_groups: Width = 32,
        scaling_factor: Positive = 1.5305,  # SD3's
        shift_factor: Number = 0.0609,
        use_post_quant_conv: bool = False,  # a 1x1 convolution before the decoder, which `whiten` needs
    ):
        super().__init__()
        self.encoder = Encoder(
            in_channels=in_channels,
            out_channels=latent_channels,
            down_block_types=("DownEncoderBlock2D",) * len(encoder_channels),
            block_out_channels=tuple(encoder_channels),
            layers_per_block=encoder_layers_per_block,
            norm_num_groups=norm_num_groups,
            double_z=True,
        )
        self.decoder = TinyDecoder(
            latent_channels,
            out_channels,
            tuple(decoder_channels),
            tuple(decoder_blocks),
            decoder_expansion,
            norm_num_groups,
        )
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1) if use_post_quant_conv else None
        self.use_tiling = self.use_slicing = False
        self.tile_sample_min_size, self.tile_overlap_factor = 512, 0.25

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent position along each side: 8 for four encoder stages."""
        return 2 ** (len(self.config.encoder_channels) - 1)

    @apply_forward_hook
    def encode(self, x: torch.Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple:
        """The posterior over latents of pictures B 3 H W in [-1, 1]; H and W must be divisible by `spatial_factor`."""
        posterior = DiagonalGaussianDistribution(self._in_parts(self.encoder, x, Fraction(1, self.spatial_factor)))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    @apply_forward_hook
    def decode(self, z: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        """Pictures B 3 8h 8w in about [-1, 1] from latents B C h w as `encode` returns them (not normalised)."""
        z = z if self.post_quant_conv is None else self.post_quant_conv(z)
        picture = self._in_parts(self.decoder, z, Fraction(self.spatial_factor))
        return DecoderOutput(sample=picture) if return_dict else (picture,)

    def _in_parts(
        self, coder: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, scale: Fraction
    ) -> torch.Tensor:
        """`coder(x)`, as a whole or in parts; it makes height and width `scale` times as large."""
        if self.use_slicing and len(x) > 1:
            return torch.cat([self._in_parts(coder, part, scale) for part in x.split(1)])
        tile = self.tile_sample_min_size // self.spatial_factor  # latent positions; then those of x
        overlap = int(tile * self.tile_overlap_factor)
        positions = self.spatial_factor if scale < 1 else 1
        if self.use_tiling and max(x.shape[-2:]) > tile * positions:
            return in_tiles(coder, x, tile * positions, overlap * positions, scale)
        return coder(x)

    @torch.no_grad()
    def whiten(self, latents: torch.Tensor) -> None:
        """Changes the weights so that `latents`, B C h w from `encode`, would have mean 0 and covariance 1.

        Reconstructions do not change: the inverse goes into `post_quant_conv`. The transformation is the symmetric one
        (ZCA), which moves channels least; the posterior's log-variances follow only its diagonal.
        """
        if self.post_quant_conv is None:
            raise ValueError("whitening needs an autoencoder with use_post_quant_conv")
        values = latents.transpose(0, 1).flatten(1).double()  # C N
        mean, (variances, axes) = values.mean(dim=1), torch.linalg.eigh(torch.cov(values))
        spreads = variances.clamp(min=1e-8).sqrt()
        whitening, inverse = axes / spreads @ axes.T, axes * spreads @ axes.T

        out, channels = self.encoder.conv_out, len(mean)
        weight, bias = out.weight.double(), out.bias.double()
        out.weight[:channels] = torch.einsum("ij,jchw->ichw", whitening, weight[:channels]).to(out.weight.dtype)
        out.bias[:channels] = (whitening @ (bias[:channels] - mean)).to(out.bias.dtype)
        out.bias[channels:] += 2 * whitening.diagonal().abs().log().to(out.bias.dtype)
        quant = self.post_quant_conv
        assert quant.bias is not None
        matrix = quant.weight[:, :, 0, 0].double()
        quant.bias += (matrix @ mean).to(quant.bias.dtype)
        quant.weight[:, :, 0, 0] = (matrix @ inverse).to(quant.weight.dtype)
        self.register_to_config(scaling_factor=1.0, shift_factor=0.0)

    def normalize(self, z: torch.Tensor) -> torch.Tensor:
        """The encoder's latents -> the latents that diffusion sees."""
        return (z - self.config.shift_factor) * self.config.scaling_factor

    def denormalize(self, z: torch.Tensor) -> torch.Tensor:
        """The inverse of `normalize`."""
        return z / self.config.scaling_factor + self.config.shift_factor

    def forward(
        self,
        sample: torch.Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Reconstructs pictures B 3 H W from the posterior's mode or, with `sample_posterior`, from a sample of it."""
        posterior = self.encode(sample, return_dict=False)[0]
        z = posterior.sample(generator=generator) if sample_posterior else posterior.mode()
        return self.decode(z, return_dict=return_dict)


def encoding_weights(autoencoder: nn.Module) -> dict[str, torch.Tensor]:
    """The part of an autoencoder's state dict (ours or diffusers' AutoencoderKL) that decides its latents."""
    return {name: tensor for name, tensor in autoencoder.state_dict().items() if not name.startswith(DECODING)}


def same_latents(one: SnapGenAutoencoder, other: SnapGenAutoencoder | AutoencoderKL) -> bool:
    """Whether two autoencoders produce the same normalised latents, up to the rounding of half precision."""
    ours, theirs = encoding_weights(one), encoding_weights(other)
    return (
        ours.keys() == theirs.keys()
        and all((one.config[name] or 0) == (other.config[name] or 0) for name in ("scaling_factor", "shift_factor"))
        and all(ours[name].shape == tensor.shape for name, tensor in theirs.items())
        and all(
            torch.allclose(ours[name].cpu().float(), tensor.cpu().float(), rtol=1e-2, atol=1e-3)
            for name, tensor in theirs.items()
        )
    )
