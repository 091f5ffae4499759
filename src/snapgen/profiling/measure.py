"""Measures latency and memory by running networks with random weights on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from snapgen.machine.counting import LiveMemory
from snapgen.machine.device import device_name
from snapgen.machine.memory import keep_freed_memory
from snapgen.models.autoencoder import SnapGenAutoencoder
from snapgen.models.unet import SnapGenUNet
from snapgen.profiling.counts import TEXT_TOKENS

Network = TypeVar("Network", bound=nn.Module)


class Measurement(BaseModel):
    """The time (seconds) and memory (bytes) of one call of a network, and the machine that it ran on."""

    model_config = ConfigDict(frozen=True)

    median_s: float  # of `repeats` calls, after `warmup` calls that do not count
    fastest_s: float
    slowest_s: float
    repeats: int
    warmup: int
    activation_bytes: int  # peak of the operators' live outputs; on CUDA, of all allocations
    weight_bytes: int
    device: str
    dtype: str
    threads: int  # of the CPU


@dataclass(frozen=True)
class Conditions:
    """How to measure: where, in which precision, how often."""

    device: str = "cpu"  # or "cuda"
    dtype: torch.dtype = torch.float32
    repeats: int = 3
    warmup: int = 1  # at least 1: the first call also counts memory
    on_run: Callable[[], object] = lambda: None  # called after every call

    @property
    def calls(self) -> int:
        """The number of calls in one measurement."""
        return self.warmup + self.repeats


def random_network(build: Callable[[], Network], conditions: Conditions) -> Network:
    """The network that `build` makes, with small random weights, channels-last, in evaluation mode.

    Normal initialisation of a few hundred million parameters would take longer than the measurement.
    """
    with torch.device("meta"):
        network = build()
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(conditions.dtype)
    network = network.to_empty(device=conditions.device)
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(-0.02, 0.02)
            else:
                tensor.zero_()
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network.eval()


@torch.no_grad()
def measure(network: nn.Module, run: Callable[[], object], conditions: Conditions) -> Measurement:
    """The latency and memory of `run`, a call of `network`, which has the device and dtype of `conditions`.

    On a CPU, the process keeps the memory of freed tensors, as after `SnapGenPipeline.optimize`.
    """
    device = torch.device(conditions.device)
    if device.type == "cpu":
        keep_freed_memory()
    activations = _activation_bytes(run, device)
    conditions.on_run()
    times = []
    for _ in range(conditions.calls - 1):
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
        conditions.on_run()
    times = times[-conditions.repeats :]
    return Measurement(
        median_s=statistics.median(times),
        fastest_s=min(times),
        slowest_s=max(times),
        repeats=conditions.repeats,
        warmup=conditions.warmup,
        activation_bytes=activations,
        weight_bytes=sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers())),
        device=device_name(device),
        dtype=str(conditions.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
    )


def measure_unet(configuration: dict[str, Any], latent: int, conditions: Conditions) -> Measurement:
    """Measure one step of a UNet on one `latent` x `latent` sample with 77 text tokens, without guidance."""
    unet = random_network(lambda: SnapGenUNet(**configuration), conditions)
    channels, width = unet.config.in_channels, unet.config.cross_attention_dim
    placed: dict[str, Any] = {"device": conditions.device, "dtype": conditions.dtype}
    sample = torch.randn(1, channels, latent, latent, **placed).to(memory_format=torch.channels_last)
    states, timestep = torch.randn(1, TEXT_TOKENS, width, **placed), torch.tensor(500.0, device=conditions.device)
    return measure(unet, lambda: unet(sample, timestep, states), conditions)


def measure_decoder(configuration: dict[str, Any], latent: int, conditions: Conditions) -> Measurement:
    """Measure the decoding of one `latent` x `latent` latent."""
    decoder = random_network(lambda: SnapGenAutoencoder(**configuration).decoder, conditions)
    z = torch.randn(1, configuration.get("latent_channels", 16), latent, latent, device=conditions.device)
    z = z.to(conditions.dtype).to(memory_format=torch.channels_last)
    return measure(decoder, lambda: decoder(z), conditions)


def _activation_bytes(run: Callable[[], object], device: torch.device) -> int:
    if device.type != "cuda":
        with LiveMemory() as memory:
            run()
        return memory.peak
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
