"""Decides whether half precision makes a processor faster."""

from __future__ import annotations

import time
from functools import cache

import torch

INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")  # CPU instructions for bf16 products, which crawl without them
GAIN = 1.2  # how much faster bf16 products must be to pay for the conversions around them
SIDE, REPEATS = 512, 8  # size and number of the timed products


@cache
def gains_by_bfloat16(device: torch.device) -> bool:
    """Whether `device` multiplies matrices clearly faster in bf16 than in fp32.

    A CPU with such instructions is timed once per process, for some 50 ms. AMD's do twice as many products as in fp32,
    Intel's AMX many times as many; but Intel's AVX-512 without AMX does half, and a picture took 1.5 times as long.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    capabilities = torch.cpu.get_capabilities()
    if not any(capabilities.get(name, False) for name in INSTRUCTIONS):
        return False
    return product_seconds(torch.float32) > GAIN * product_seconds(torch.bfloat16)


def product_seconds(dtype: torch.dtype) -> float:
    """The seconds that one matrix product takes on one CPU thread, the fastest of several."""
    matrix, seconds, threads = torch.ones(SIDE, SIDE, dtype=dtype), [], torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine, several threads would wait for each other
    try:
        for _ in range(REPEATS):
            started = time.perf_counter()
            matrix @ matrix
            seconds.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return min(seconds)
