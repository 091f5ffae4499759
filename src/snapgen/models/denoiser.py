"""What predicts velocities: the efficient UNet, or a teacher's transformer under the same call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import torch

from snapgen.models.teacher import TeacherTransformer
from snapgen.models.unet import SnapGenUNet
from snapgen.weights import load_network

Denoiser = SnapGenUNet | TeacherTransformer


def network_class(config: Path) -> type[SnapGenUNet] | type[TeacherTransformer]:
    """What the network of the configuration file `config` is loaded as."""
    kind = json.loads(config.read_text(encoding="utf-8"))["_class_name"]
    return TeacherTransformer if kind in (TeacherTransformer.__name__, "SD3Transformer2DModel") else SnapGenUNet


def load_denoiser(folder: Path) -> Denoiser:
    """The UNet or the transformer in `folder`, as its configuration says, in fp32."""
    return cast(Denoiser, load_network(network_class(folder / "config.json"), str(folder), dtype=torch.float32))


def text_width(network: Denoiser) -> int:
    """Width of the text states that `network` reads."""
    config = network.config
    return int(config.joint_attention_dim if isinstance(network, TeacherTransformer) else config.cross_attention_dim)


def feature_widths(network: Denoiser) -> list[int]:
    """Channels of the features that the taps 0, 1, ... of `network` give, one for each of its layers or blocks."""
    config = network.config
    if isinstance(network, TeacherTransformer):
        return [config.num_attention_heads * config.attention_head_dim] * config.num_layers
    widths, depth = list(config.block_out_channels), config.layers_per_block
    down = [width for width in widths for _ in range(depth)]
    return [*down, widths[-1], *(width for width in reversed(widths) for _ in range(depth + 1))]
