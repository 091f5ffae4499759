"""Distributed training: one process, DDP, or FSDP2, which shards weights, gradients, moments and moving average.

Under FSDP2 every parameter is a `DTensor`, and each process holds its part. Saving, sampling and resuming need whole
tensors. The functions here convert between the two and leave plain tensors as they are.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed
from accelerate import (
    Accelerator,
    DistributedDataParallelKwargs,
    DistributedType,
    FullyShardedDataParallelPlugin,
    InitProcessGroupKwargs,
)
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import convert_outputs_to_fp32
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from torch.distributed.tensor import DTensor, distribute_tensor

from snapgen.config import RecipeError, TrainSettings

Network = TypeVar("Network", bound=nn.Module)


def make_accelerator(settings: TrainSettings) -> Accelerator:
    """The Accelerator for the processes that `accelerate launch` or `torchrun` started, or for this one alone."""
    sharding = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if sharding and os.environ.get("FSDP_VERSION") != "2":
        raise RecipeError("training supports one process, DDP or FSDP2, not FSDP 1: add --fsdp_version 2")
    AcceleratorState._reset_state()  # a process may train several stages, each with its own precision
    accelerator = Accelerator(
        mixed_precision={"fp32": "no", "bf16": "bf16"}[settings.precision],
        cpu=not torch.cuda.is_available(),
        # The others wait while the first process samples and evaluates, which can take long.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=2))],
    )
    if accelerator.num_processes > 1 and accelerator.device.type == "cpu":
        if sharding:
            _shard_on_cpu(accelerator)
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(1)  # otherwise every process claims every core
    kind = accelerator.distributed_type
    alone_or_ddp = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
    if kind not in (*alone_or_ddp, DistributedType.FSDP):
        raise RecipeError(f"training supports one process, DDP or FSDP2, not {kind.value}")
    return accelerator


def _shard_on_cpu(accelerator: Accelerator) -> None:
    """Switches FSDP2 on for CPUs. torch supports it there, but accelerate does not and would silently use DDP."""
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    # accelerate does the same elsewhere: all its objects read this one place.
    accelerator.state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def distribute(
    accelerator: Accelerator, network: nn.Module, optimizer: torch.optim.Optimizer, partial: bool = False
) -> nn.Module:
    """Wraps `network` for precision and distribution; `partial`: a backward pass may skip some parameters.

    FSDP2 shards it and `optimizer`'s parameters in place: one group for each block that the network lists in
    `_no_split_modules`, and one for the rest.
    """
    if not accelerator.is_fsdp2:
        if partial:  # DDP must look for these; FSDP2 reduces what gradients there are
            accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)
        return cast(nn.Module, accelerator.prepare_model(network))
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP2 accepts no other memory format
    plugin = accelerator.state.fsdp_plugin
    blocks = blocks_of(network)
    if network._compiled_call_impl is not None:
        # Hooks cut the graph at every block, and blocks share one function, which is recompiled for each.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 4 * len(blocks))
    plugin.auto_wrap_policy = transformer_auto_wrap_policy
    plugin.transformer_cls_names_to_wrap = sorted({type(block).__name__ for block in blocks})
    plugin.mixed_precision_policy = None
    if accelerator.mixed_precision == "bf16":
        # Autocast, as without shards, keeps timesteps and losses in fp32. Blocks are gathered in bf16, since autocast
        # would cast them to it anyway, and gradients are summed in fp32.
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        autocast = torch.autocast(accelerator.device.type, torch.bfloat16)
        network.forward = convert_outputs_to_fp32(autocast(network.forward))
    accelerator.prepare(network, optimizer)
    for group in optimizer.param_groups:
        group["foreach"] = True  # AdamW's default on GPUs, except for shards, which it updates one by one
    return network


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The parts that FSDP2 gathers one at a time: their classes are listed in `_no_split_modules`."""
    names = {name for part in network.modules() for name in getattr(part, "_no_split_modules", None) or ()}
    return [part for part in network.modules() if type(part).__name__ in names]


def hollow_copy(network: Network) -> Network:
    """A copy of `network` in eval mode with empty parameters, for `filled`."""
    empty = {id(parameter): _hollow(parameter) for parameter in network.parameters()}
    return copy.deepcopy(network, cast(dict[int, object], empty)).eval()


def _hollow(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(parameter.new_empty(0), requires_grad=parameter.requires_grad)


@contextmanager
def filled(hollow: Network, tensors: Mapping[str, Tensor]) -> Iterator[Network]:
    """Fills `hollow` with the whole `tensors`, parameters and buffers by name; empties its parameters on exit.

    All processes must enter together. It is filled in the first process only.
    """
    places = dict(hollow.named_parameters()) | dict(hollow.named_buffers())
    for name, tensor in tensors.items():
        full = whole(tensor)
        if is_first_process():
            places[name].data = full
    try:
        yield hollow
    finally:
        for parameter in hollow.parameters():
            parameter.data = parameter.data.new_empty(0)


def is_first_process() -> bool:
    """Whether this is the first process, the one that writes files."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def local(tensor: Tensor) -> Tensor:
    """This process's part of `tensor`, live."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sharded_like(part: Tensor, like: Tensor) -> Tensor:
    """The tensor that is sharded like `like` and whose part in this process is `part`, live."""
    if not isinstance(like, DTensor):
        return part
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def whole(tensor: Tensor) -> Tensor:
    """The whole `tensor`, joined from the parts of all processes, which must call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The whole `tensors` in the first process, nothing in the others. All processes must call it together.

    Each tensor is gathered and moved to the CPU before the next, so the device holds only one whole tensor at a time.
    """
    gathered: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = whole(tensor)
        if is_first_process():
            gathered[name] = full.cpu() if isinstance(tensor, DTensor) else full
    return gathered


def copy_whole(target: Tensor, source: Tensor) -> None:
    """Copies `source`, which every process holds whole, into `target` or this process's part of it."""
    if isinstance(target, DTensor):
        placed = source.to(target.device)
        source = distribute_tensor(placed, target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(source)
