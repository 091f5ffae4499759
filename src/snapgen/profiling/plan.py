"""Estimates what a training run will cost before anyone pays for it: samples, MACs, GPU-hours, memory, storage."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict
from torch import nn

from snapgen.config import Recipe
from snapgen.train.cost import BF16, FP32
from snapgen.train.distribution import blocks_of
from snapgen.train.optimizer import check_shardable, hidden_matrices
from snapgen.train.stages import load_stage


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU, from its maker's data sheet."""

    bf16_flops: float  # dense, per second
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
    """The cost of one recipe. Memory is in bytes per GPU; storage is in bytes in all."""

    model_config = ConfigDict(frozen=True)

    parameters: int  # trainable
    steps: int
    samples: int  # an adversary's turns use as many again each
    macs_per_sample: int  # forward pass of the trained network
    flops: dict[str, float]  # of the whole run, forward, backward and recomputed activations, by part
    training_flops: float  # their sum
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
    uncounted: tuple[str, ...]  # parts of unknown size


def plan(
    recipe: Recipe,
    gpus: int,
    gpu: str,
    utilisation: float,
    teacher: str | None = None,
    shard: bool = False,
    pictures: int | None = None,
) -> Plan:
    """The plan of a recipe whose stage states its cost: `autoencoder`, `flow`, `distill` or `step`.

    `teacher` is the preset that stands for the recipe's teacher, by default the one of its name; `pictures` is how many
    the cache will hold, where the recipe does not say. Memory is FSDP2's with `shard`, else DDP's: its parts summed,
    though they do not all peak at once. RecipeError if the batch cannot be divided among the GPUs.
    """
    settings = recipe.train
    share = settings.share(gpus)[1]
    work = load_stage(recipe.stage).cost(recipe, share, teacher)
    samples = settings.steps * settings.batch_size
    every = [(parameter.numel(), parameter.requires_grad) for parameter in work.network.parameters()]
    kept, learning = sum(size for size, _ in every), sum(size for size, learns in every if learns)
    matrices = hidden_matrices(work.network) if settings.optimizer == "muon" else []
    moments = 2 * learning - sum(matrix.numel() for matrix in matrices)  # Muon keeps one per matrix, AdamW two
    if shard:
        check_shardable(settings)
    parts = gpus if shard else 1
    memory = {
        "weights": FP32 * math.ceil(kept / parts),
        "gradients": FP32 * math.ceil(learning / parts),
        "optimizer": FP32 * math.ceil(moments / parts),
        "moving average": FP32 * math.ceil(kept / parts),
        "gathered blocks": gathered_bytes(work.network, settings.precision) if shard else 0,
        **work.frozen,
        "activations": work.activations,
    }
    cached = pictures or getattr(getattr(recipe, "data", None), "count", 0)
    flops = {part: size * samples for part, size in work.flops.items()}
    if work.target_bytes and cached:
        flops["teacher"] = work.flops["teacher"] * cached * work.draws  # once per target, however long the run
    hours = sum(flops.values()) / (GPUS[gpu].bf16_flops * utilisation) / 3600
    # A checkpoint: weights, average, moments.
    storage = {"checkpoints": settings.keep_checkpoints * FP32 * (2 * kept + moments)}
    for name, size in (("latents", work.latent_bytes), ("teacher's targets", work.target_bytes * work.draws)):
        if size:
            storage[name if cached else f"{name}, each picture"] = size * (cached or 1)
    return Plan(
        parameters=learning,
        steps=settings.steps,
        samples=samples,
        macs_per_sample=work.macs,
        flops=flops,
        training_flops=sum(flops.values()),
        gpus=gpus,
        gpu=gpu,
        utilisation=utilisation,
        gpu_hours=hours,
        days=hours / gpus / 24,
        memory=memory,
        memory_total=sum(memory.values()),
        memory_of_gpu=GPUS[gpu].memory,
        fits=sum(memory.values()) < GPUS[gpu].memory,
        storage=storage,
        uncounted=work.uncounted,
    )


def gathered_bytes(network: nn.Module, precision: str) -> int:
    """Bytes that FSDP2 gathers at a time: one block with its gradients, the next one, and all that is in no block."""
    blocks = [sum(parameter.numel() for parameter in block.parameters()) for block in blocks_of(network)]
    rest = sum(parameter.numel() for parameter in network.parameters()) - sum(blocks)
    return (3 * max(blocks, default=0) + rest) * (BF16 if precision == "bf16" else FP32)


def human(size: float) -> str:
    """`size` in bytes as text in GB, MB or kB (powers of ten)."""
    if size >= 1e9:
        return f"{size / 1e9:.2f} GB"
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def duration(days: float) -> str:
    """`days` as text in days, hours or minutes, whichever fits."""
    for unit, length in (("days", 1.0), ("hours", 1 / 24)):
        if days >= 2 * length:
            return f"{days / length:.1f} {unit}"
    return f"{math.ceil(days * 24 * 60)} min"
