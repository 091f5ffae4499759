"""What a training run will cost, before anyone pays for it: samples, MACs, GPU-hours, memory, storage."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from snapgen.config import RecipeError
from snapgen.models.denoiser import Denoiser, text_width
from snapgen.models.presets import create_denoiser
from snapgen.models.teacher import TeacherTransformer
from snapgen.profiling.counts import count
from snapgen.profiling.measure import LiveMemory
from snapgen.train.stages.distill import DistillRecipe
from snapgen.train.stages.flow import FlowRecipe

LATENT_FACTOR = 8  # pixels a latent position
FP32, BF16 = 4, 2  # bytes


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU, by its maker's data sheet."""

    bf16_flops: float  # dense, a second
    memory: int  # bytes


GPUS = {
    "a100": Gpu(312e12, 80 * 10**9),
    "h100": Gpu(989e12, 80 * 10**9),
    "h200": Gpu(989e12, 141 * 10**9),
    "b200": Gpu(2250e12, 180 * 10**9),
    "l40s": Gpu(362e12, 48 * 10**9),
    "rtx4090": Gpu(165e12, 24 * 10**9),
}


class Plan(BaseModel):
    """The cost of one recipe. Bytes are a GPU's, but for storage."""

    model_config = ConfigDict(frozen=True)

    parameters: int
    steps: int
    samples: int
    macs_per_sample: int  # forward pass of the trained network
    training_flops: float  # of the whole run: forward, backward, recomputed activations, teacher
    gpus: int
    gpu: str
    utilisation: float  # share of the GPU's dense bf16 rate
    gpu_hours: float
    days: float
    memory: dict[str, int]  # by part
    memory_total: int
    memory_of_gpu: int
    fits: bool
    storage: dict[str, int]  # bytes


def plan(
    recipe: FlowRecipe, gpus: int, gpu: str, utilisation: float, teacher: str = "mini-teacher", shard: bool = False
) -> Plan:
    """Of a `flow` or `distill` recipe; `teacher` is the preset that a distill recipe's teacher is counted as.

    With `shard`, memory is FSDP2's, without it DDP's: its parts summed, though they are not all full at once.
    Without a cache, encoding the pictures in every step comes on top. RecipeError where the batch cannot be divided.
    """
    settings = recipe.train
    share, rest = divmod(settings.batch_size, gpus * settings.gradient_accumulation)
    if rest or not share:
        raise RecipeError(
            f"train.batch_size {settings.batch_size} cannot be divided into {gpus} GPUs x "
            f"train.gradient_accumulation {settings.gradient_accumulation}"
        )
    side = recipe.data.resolution // LATENT_FACTOR
    with torch.device("meta"):
        network = create_denoiser(recipe.model)
        inputs = _inputs(network, 1, side)
        counts = count(network, lambda: network(**inputs))
    forward = float(counts.macs)
    passes = 3.0 + settings.activation_checkpointing  # the backward pass is worth two
    flops, teacher_parameters = 2 * passes * forward, 0
    if isinstance(recipe, DistillRecipe):
        with torch.device("meta"):
            frozen = create_denoiser(teacher)
            given = _inputs(frozen, 1, side)
            taught = count(frozen, lambda: frozen(**given))
        flops += 2 * taught.macs * (1 + (recipe.distillation.guidance_scale != 1.0))
        teacher_parameters = taught.parameters
    samples = settings.steps * settings.batch_size
    trained = counts.parameters
    held = math.ceil(trained / gpus) if shard else trained
    memory = {
        "weights": FP32 * held,
        "gradients": FP32 * held,
        "optimizer": 2 * FP32 * held,
        "moving average": FP32 * held,
        "gathered blocks": gathered_bytes(network, settings.precision) if shard else 0,
        "teacher": (BF16 if settings.precision == "bf16" else FP32) * teacher_parameters,
        "activations": activation_bytes(recipe, share, side),
    }
    hours = flops * samples / (GPUS[gpu].bf16_flops * utilisation) / 3600
    count_of_latents = 0 if recipe.cache is None else getattr(recipe.data, "count", 0)
    return Plan(
        parameters=trained,
        steps=settings.steps,
        samples=samples,
        macs_per_sample=counts.macs,
        training_flops=flops * samples,
        gpus=gpus,
        gpu=gpu,
        utilisation=utilisation,
        gpu_hours=hours,
        days=hours / gpus / 24,
        memory=memory,
        memory_total=sum(memory.values()),
        memory_of_gpu=GPUS[gpu].memory,
        fits=sum(memory.values()) < GPUS[gpu].memory,
        storage={
            "latents": count_of_latents * network.config.in_channels * side**2 * 2,  # fp16
            "checkpoints": settings.keep_checkpoints * 4 * FP32 * trained,  # model, average, two moments
        },
    )


def gathered_bytes(network: Denoiser, precision: str) -> int:
    """What FSDP2 has whole of `network` at a time: a block with its gradients, the next one, and what is in none."""
    blocks = [
        sum(parameter.numel() for parameter in part.parameters())
        for part in network.modules()
        if type(part).__name__ in network._no_split_modules
    ]
    rest = sum(parameter.numel() for parameter in network.parameters()) - sum(blocks)
    return (3 * max(blocks) + rest) * (2 if precision == "bf16" else FP32)


def activation_bytes(recipe: FlowRecipe, batch: int, side: int) -> int:
    """The most that is alive in the forward pass of a training step, on the meta device in the recipe's precision."""
    dtype = torch.bfloat16 if recipe.train.precision == "bf16" else torch.float32
    with torch.device("meta"):
        network = create_denoiser(recipe.model).to(dtype).train()
        if recipe.train.activation_checkpointing:
            network.enable_gradient_checkpointing()
        inputs = {name: tensor.to(dtype) for name, tensor in _inputs(network, batch, side).items()}
        with _fused_attention(), LiveMemory() as memory:
            network(**inputs, return_dict=False)[0].float().square().mean()
    return memory.peak


def _inputs(network: Denoiser, batch: int, side: int) -> dict[str, Tensor]:
    """Latent, timestep and text, of the miniature's 32 tokens, Stable Diffusion 3's 333 or the full size's 377."""
    width = text_width(network)
    teacher = isinstance(network, TeacherTransformer)
    tokens = 32 if width < 768 else 333 if teacher else 377
    inputs = {
        "sample": torch.empty(batch, network.config.in_channels, side, side),
        "timestep": torch.empty(batch),
        "encoder_hidden_states": torch.empty(batch, tokens, width),
    }
    if teacher:
        inputs["pooled_projections"] = torch.empty(batch, network.config.pooled_projection_dim)
    return inputs


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Attention that keeps what a fused kernel keeps (queries, result), not the matrix of weights."""

    def attend(query: Tensor, key: Tensor, value: Tensor, **settings: Any) -> Tensor:
        return query * value.mean(dim=-2, keepdim=True)

    with patch.object(F, "scaled_dot_product_attention", attend):
        yield


def human(size: float) -> str:
    """Bytes in GB or MB (powers of ten)."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def duration(days: float) -> str:
    """In days, hours or minutes, whichever fits."""
    for unit, length in (("days", 1.0), ("hours", 1 / 24)):
        if days >= 2 * length:
            return f"{days / length:.1f} {unit}"
    return f"{math.ceil(days * 24 * 60)} min"
