"""The processes that train together: one alone, DDP, or FSDP2, which shards weights, gradients, moments and average.

Under FSDP2 every parameter is a `DTensor` of which a process holds its part. What is written, drawn from or resumed
is whole again: the functions here go from the one to the other and leave plain tensors as they are.
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
    """accelerate's view of the processes that `accelerate launch` or `torchrun` started, or of this one alone."""
    sharding = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if sharding and os.environ.get("FSDP_VERSION") != "2":
        raise RecipeError("training supports one process, DDP or FSDP2, not FSDP 1: add --fsdp_version 2")
    AcceleratorState._reset_state()  # a process may train several stages, each with its own precision
    accelerator = Accelerator(
        mixed_precision={"fp32": "no", "bf16": "bf16"}[settings.precision],
        cpu=not torch.cuda.is_available(),
        # The first process draws and evaluates while the others wait, which may take long.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=2))],
    )
    if accelerator.num_processes > 1 and accelerator.device.type == "cpu":
        if sharding:
            _shard_on_cpu(accelerator)
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(1)  # else every process claims every core
    kind = accelerator.distributed_type
    alone_or_ddp = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
    if kind not in (*alone_or_ddp, DistributedType.FSDP):
        raise RecipeError(f"training supports one process, DDP or FSDP2, not {kind.value}")
    return accelerator


def _shard_on_cpu(accelerator: Accelerator) -> None:
    """FSDP2 on CPUs: torch can, accelerate knows it for accelerators only and would use DDP without a word."""
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    # As accelerate does it elsewhere: the one place that all its objects read.
    accelerator.state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def distribute(
    accelerator: Accelerator, network: nn.Module, optimizer: torch.optim.Optimizer, partial: bool = False
) -> nn.Module:
    """`network` wrapped for precision and processes; `partial`: a backward pass may leave parameters out.

    FSDP2 shards it in place, with `optimizer`'s parameters: a group for every block that the network names as one in
    `_no_split_modules`, and one for the rest.
    """
    if not accelerator.is_fsdp2:
        if partial:  # which DDP must then look for; FSDP2 reduces the gradients that there are
            accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)
        return cast(nn.Module, accelerator.prepare_model(network))
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP2 takes no other memory format
    plugin = accelerator.state.fsdp_plugin
    blocks = blocks_of(network)
    if network._compiled_call_impl is not None:
        # Hooks cut the graph at every block, and blocks share a function: each is a recompilation of it.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 4 * len(blocks))
    plugin.auto_wrap_policy = transformer_auto_wrap_policy
    plugin.transformer_cls_names_to_wrap = sorted({type(block).__name__ for block in blocks})
    plugin.mixed_precision_policy = None
    if accelerator.mixed_precision == "bf16":
        # Autocast, as without shards, which leaves times and losses in fp32; blocks are gathered in bf16, which it
        # would cast them to, gradients summed in fp32.
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        autocast = torch.autocast(accelerator.device.type, torch.bfloat16)
        network.forward = convert_outputs_to_fp32(autocast(network.forward))
    accelerator.prepare(network, optimizer)
    for group in optimizer.param_groups:
        group["foreach"] = True  # AdamW's own choice on GPUs, but for shards, which it takes one by one unless told
    return network


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The parts that FSDP2 gathers one at a time: of the classes that networks name in `_no_split_modules`."""
    names = {name for part in network.modules() for name in getattr(part, "_no_split_modules", None) or ()}
    return [part for part in network.modules() if type(part).__name__ in names]


def hollow_copy(network: Network) -> Network:
    """A copy of `network` in eval mode whose parameters hold nothing, for `filled`."""
    empty = {id(parameter): _hollow(parameter) for parameter in network.parameters()}
    return copy.deepcopy(network, cast(dict[int, object], empty)).eval()


def _hollow(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(parameter.new_empty(0), requires_grad=parameter.requires_grad)


@contextmanager
def filled(hollow: Network, tensors: Mapping[str, Tensor]) -> Iterator[Network]:
    """Lends `hollow` with the whole `tensors`, parameters and buffers by name.

    All processes must enter together; in those but the first it stays hollow.
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
    """Whether this process writes."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def local(tensor: Tensor) -> Tensor:
    """This process's part of `tensor`, live."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sharded_like(part: Tensor, like: Tensor) -> Tensor:
    """The tensor of which this process holds `part`, live, sharded as `like` is."""
    if not isinstance(like, DTensor):
        return part
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def whole(tensor: Tensor) -> Tensor:
    """`tensor` with the parts of all processes, which must call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors`, whole; nothing in processes but the first. All call it together.

    They become whole one after another and then leave the device, so that it holds one of them at a time.
    """
    gathered: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = whole(tensor)
        if is_first_process():
            gathered[name] = full.cpu() if isinstance(tensor, DTensor) else full
    return gathered


def copy_whole(target: Tensor, source: Tensor) -> None:
    """Copies `source`, which every process has whole, over `target` or this process's part of it."""
    if isinstance(target, DTensor):
        placed = source.to(target.device)
        source = distribute_tensor(placed, target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(source)
