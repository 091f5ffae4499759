"""Whether a processor gains by half precision."""

from __future__ import annotations

import time
from functools import cache

import torch

INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")  # of CPUs, for products of bf16 matrices; without one they crawl
GAIN = 1.2  # how much faster such products must be to pay for conversions around them
SIDE, REPEATS = 512, 8  # of the products that are timed


@cache
def gains_by_bfloat16(device: torch.device) -> bool:
    """Whether `device` multiplies matrices clearly faster in bf16 than in fp32.

    A CPU that has instructions for it is timed, once a process and for some 50 ms: on AMD's they do twice the products
    of fp32, Intel's AMX many times, but Intel's AVX-512 without AMX does half, and a picture took 1.5 times as long.
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
    """What one product of two matrices takes on one thread of the CPU, the fastest of several."""
    matrix, seconds, threads = torch.ones(SIDE, SIDE, dtype=dtype), [], torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for each other would be timed on a busy machine
    try:
        for _ in range(REPEATS):
            started = time.perf_counter()
            matrix @ matrix
            seconds.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return min(seconds)
