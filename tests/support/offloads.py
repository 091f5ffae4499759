"""Every kind of offloading that diffusers' pipelines have, between the CPU and itself."""

from collections.abc import Callable

import accelerate
import torch
from torch import nn

from snapgen.pipeline.text_to_image import SnapGenPipeline

CPU = torch.device("cpu")
Offload = Callable[[SnapGenPipeline], None]


def whole_models(pipeline: SnapGenPipeline) -> None:
    pipeline.enable_model_cpu_offload(device="cpu")


def layers(pipeline: SnapGenPipeline) -> None:
    """What `enable_sequential_cpu_offload` does; it itself says "cpu:0", which accelerate cannot use."""
    for network in pipeline.components.values():
        if isinstance(network, nn.Module):
            accelerate.cpu_offload(network, CPU)


def groups(pipeline: SnapGenPipeline) -> None:
    pipeline.enable_group_offload(CPU, offload_type="block_level", num_blocks_per_group=1)


def pairs(pipeline: SnapGenPipeline) -> None:
    pipeline.enable_group_offload(CPU, offload_type="block_level", num_blocks_per_group=2)


def leaves(pipeline: SnapGenPipeline) -> None:
    pipeline.enable_group_offload(CPU, offload_type="leaf_level")


OFFLOADS: list[Offload] = [whole_models, layers, groups, pairs, leaves]
