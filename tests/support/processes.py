"""Processes that start at once: each is forked from one that has imported everything and computed nothing.

To fork the tests' own process would not do: PyTorch's builds for GPUs refuse a backward pass in the fork of a process
that has made one.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from typing import Any

import torch

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["support.regression", "support.sharded", "snapgen.train.loop", "snapgen.train.stages.flow"]
)


def start(work: Callable[..., object], *arguments: Any) -> ForkServerProcess:
    """A process that does `work`, a function of a module; a signal that ended it is its `exitcode`, negated."""
    process = CONTEXT.Process(target=work, args=arguments)
    process.start()
    return process


def run_two(work: Callable[..., object], *arguments: Any) -> list[int | None]:
    """Two processes do `work` in the environment that torchrun makes; their exit statuses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [start(work_as, rank, port, work, arguments) for rank in range(2)]
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def work_as(rank: int, port: int, work: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    """What one of the two processes does."""
    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    torch.set_num_threads(1)
    work(*arguments)
