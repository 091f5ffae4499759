"""Processes that start at once: each is forked from one that has imported everything and computed nothing.

To fork the tests' own process would not do: PyTorch's builds for GPUs refuse a backward pass in the fork of a process
that has made one.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["support.regression", "support.sharded", "snapgen.train.loop", "snapgen.train.stages.flow"]
)


def start(work: Callable[..., object], *arguments: Any) -> ForkServerProcess:
    """A process that does `work`, a function of a module; a signal that ended it is its `exitcode`, negated."""
    process = CONTEXT.Process(target=work, args=arguments)
    process.start()
    return process
