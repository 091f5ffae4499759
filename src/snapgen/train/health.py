"""Weights worth keeping: checkpoints and finished models hold only numbers that are finite and not absurdly large."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor

from snapgen.train.distribution import local
from snapgen.weights import extremes

# The largest number of float16, in which finished models ship. Healthy weights stay far below: the bundled networks'
# reach 4.7, the gains and embeddings of published text encoders some hundreds.
LARGEST_WEIGHT = torch.finfo(torch.float16).max
LARGEST_NUMBER = torch.finfo(torch.float32).max  # of what does not ship: moments, running statistics


def ailment(accelerator: Accelerator, files: Mapping[str, Mapping[str, Tensor]]) -> str | None:
    """What is wrong with the tensors of a checkpoint (`TrainState.tensors`); None if they are healthy.

    Weights are what the moving average covers. All processes must call it together: each looks at its own parts, and if
    one finds something, all return a text.
    """
    weights = files["ema"].keys()
    found = None
    for name, tensor in (pair for tensors in files.values() for pair in tensors.items()):
        found = found or unhealthy({name: tensor}, LARGEST_WEIGHT if name in weights else LARGEST_NUMBER)
    ill = accelerator.reduce(torch.tensor(float(found is not None), device=accelerator.device), "sum").item()
    return found or ("another process found a value that is not finite or too large" if ill else None)


def unhealthy(tensors: Mapping[str, Tensor], largest: float = LARGEST_WEIGHT) -> str | None:
    """The first of `tensors` with a value that is not finite or beyond `largest`, in words; None if there is none."""
    for name, tensor in tensors.items():
        part = local(tensor)
        if not part.is_floating_point() or not part.numel():
            continue
        magnitude = max(map(abs, extremes(part)))
        if not magnitude <= largest:
            return f"{name} holds a value of {magnitude:.4g}"
    return None
