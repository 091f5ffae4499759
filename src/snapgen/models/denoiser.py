"""The networks that predict velocities: the efficient UNet, or a teacher's transformer with the same call."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch

from snapgen.files import read_json
from snapgen.models.teacher import TeacherTransformer
from snapgen.models.unet import SnapGenUNet
from snapgen.weights import load_network

Denoiser = SnapGenUNet | TeacherTransformer


def network_class(config: Path) -> type[SnapGenUNet] | type[TeacherTransformer]:
    """The class that loads the network with the configuration file `config`."""
    kind = read_json(config).get("_class_name")
    if kind in (TeacherTransformer.__name__, "SD3Transformer2DModel"):
        return TeacherTransformer
    if kind != SnapGenUNet.__name__:
        raise ValueError(f"{config} describes a {str(kind)[:100]}, expected a {SnapGenUNet.__name__} or a transformer")
    return SnapGenUNet


def load_denoiser(folder: Path) -> Denoiser:
    """The UNet or transformer in `folder`, whichever its configuration names, in fp32."""
    return cast(Denoiser, load_network(network_class(folder / "config.json"), str(folder), dtype=torch.float32))


def text_width(network: Denoiser) -> int:
    """The width of the text states that `network` reads."""
    config = network.config
    return int(config.joint_attention_dim if isinstance(network, TeacherTransformer) else config.cross_attention_dim)


def pooled_width(network: Denoiser) -> int | None:
    """The width of the pooled text vector that `network` is given; None: it reads none, or makes its own."""
    return None if isinstance(network, TeacherTransformer) else network.config.get("pooled_projection_dim")


def feature_widths(network: Denoiser) -> list[int]:
    """The channels of the features at taps 0, 1, ... of `network`, one per layer or block."""
    config = network.config
    if isinstance(network, TeacherTransformer):
        return [config.num_attention_heads * config.attention_head_dim] * config.num_layers
    widths, depth = list(config.block_out_channels), config.layers_per_block
    down = [width for width in widths for _ in range(depth)]
    return [*down, widths[-1], *(width for width in reversed(widths) for _ in range(depth + 1))]
