"""Counts what networks compute and hold: parameters, multiply-accumulates, bytes alive. Works on the meta device."""

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
    """Of one network: parameters, MACs, and how many of the MACs are attention's two products."""

    parameters: int
    macs: int
    attention_macs: int
    modules: dict[str, int]  # parameters of each top-level part


def count(network: nn.Module, run: Callable[[], Any]) -> Counts:
    """Of `network` and of `run`, a call of it; both may be on the `meta` device."""
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
    """Whether `operation` belongs to attention's products: fused, or batched as its plain form does them."""
    name = str(operation)
    return "attention" in name or name.startswith("aten.bmm") or name.startswith("aten.baddbmm")


class LiveMemory(TorchDispatchMode):
    """Within it, `peak` is the most bytes alive at any time of the tensors that operators return.

    What an operator needs inside and gives back before it returns does not show. Tensors that were there before
    (weights, inputs) do not count.
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
    """Within it attention keeps what a fused kernel keeps (queries, result), not the matrix of weights."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """`func`, or in place of attention something of the same shape that holds no matrix."""
        if func is F.scaled_dot_product_attention:
            query, _, value = args
            return query * value.mean(dim=-2, keepdim=True)
        return func(*args, **(kwargs or {}))


def peak_bytes(run: Callable[[], object]) -> int:
    """The most bytes alive at a time in `run`, whose result is held to its end; attention is fused."""
    with FusedAttention(), LiveMemory() as memory:
        run()
    return memory.peak
