"""The arrays that the formulas of sampling take: torch's tensors, or numpy's arrays where torch is not installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import torch

Array = TypeVar("Array", "torch.Tensor", "np.ndarray")
