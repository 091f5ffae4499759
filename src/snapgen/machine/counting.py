"""Counts parameters, multiply-accumulates and live bytes of networks, also on the meta device."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary


@dataclass(frozen=True)
class Counts:
    """The size of one network: parameters, MACs, and the MACs of attention's two products."""

    parameters: int
    macs: int
    attention_macs: int
    modules: dict[str, int]  # parameters of each top-level module


def count(network: nn.Module, run: Callable[[], Any]) -> Counts:
    """The counts of `network` and of `run`, a call of it; both may be on the `meta` device."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    by_operation = counter.get_flop_counts()["Global"]
    attention = sum(flops for operation, flops in by_operation.items() if _is_attention(operation))
    return Counts(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        macs=counter.get_total_flops() // 2,
        attention_macs=attention // 2,
        modules={
            name: sum(parameter.numel() for parameter in part.parameters()) for name, part in network.named_children()
        },
    )


def _is_attention(operation: Any) -> bool:
    """Whether `operation` is one of attention's products: fused, or batched as in its plain form."""
    name = str(operation)
    return "attention" in name or name.startswith("aten.bmm") or name.startswith("aten.baddbmm")


class LiveMemory(TorchDispatchMode):
    """A context in which `peak` is the maximum number of live bytes of tensors that operators returned.

    Memory that an operator frees before it returns is not seen. Earlier tensors (weights, inputs) do not count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self._known.setdefault(tensor.untyped_storage(), 0)
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:  # a view, or written in place
            return
        size = storage.nbytes()
        self._known[storage] = size
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self.alive -= size


class FusedAttention(TorchFunctionMode):
    """A context in which attention keeps what a fused kernel keeps (queries, result), not the attention matrix."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls `func`, or for attention something with a result of the same shape but without the matrix."""
        if func is F.scaled_dot_product_attention:
            query, _, value = args
            return query * value.mean(dim=-2, keepdim=True)
        return func(*args, **(kwargs or {}))


def peak_bytes(run: Callable[[], object]) -> int:
    """The peak of live bytes during `run`, its result included; attention counts as fused."""
    with FusedAttention(), LiveMemory() as memory:
        run()
    return memory.peak
