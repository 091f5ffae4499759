"""The optimisers: AdamW, or Muon for hidden matrices with AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from snapgen.config import RecipeError, TrainSettings

THINNEST = 32  # rows or columns; a thinner matrix is an input or output layer and left to AdamW


class MuonAdamW(torch.optim.AdamW):
    """Muon (Jordan et al. 2024) for hidden matrices, AdamW for everything else, as one optimiser.

    1x1 convolutions are matrices too. Muon's updates are scaled to the RMS of AdamW's (Liu et al. 2025), so both share
    one learning rate. A matrix has one moment, `momentum_buffer`, instead of AdamW's two.
    """

    def __init__(self, groups: list[dict[str, Any]], matrices: list[nn.Parameter], lr: float, **settings: Any) -> None:
        """`groups`: AdamW's parameter groups, which include the `matrices`; `settings`: their defaults."""
        super().__init__(groups, lr=lr, **settings)
        owner = {parameter: group for group in self.param_groups for parameter in group["params"]}
        self._parts = [
            (
                parameter,
                owner[parameter],
                torch.optim.Muon([_matrix(parameter)], lr=lr, adjust_lr_fn="match_rms_adamw"),
            )
            for parameter in matrices
        ]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Makes one update; afterwards the matrices have no gradients."""
        if closure is not None:
            raise ValueError("no closure expected")
        for parameter, group, muon in self._parts:
            if parameter.grad is None:
                continue
            (own,) = muon.param_groups
            own["lr"], own["weight_decay"] = group["lr"], group["weight_decay"]
            (view,) = own["params"]
            view.data, view.grad = _matrix(parameter), _matrix(parameter.grad)
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            muon.state[view]["momentum_buffer"] = _matrix(state["momentum_buffer"])
            muon.step()
            view.grad = parameter.grad = None
        super().step()


def _matrix(tensor: Tensor) -> Tensor:
    """A view of a linear layer's weight, or of a 1x1 convolution's without its last two dimensions."""
    return tensor.detach().view(tensor.shape[:2])


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The trainable weights of linear layers and 1x1 convolutions, except input and output layers."""
    layers = [
        part
        for part in model.modules()
        if isinstance(part, nn.Linear) or (isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1))
    ]
    weights = [cast(nn.Parameter, layer.weight) for layer in layers]
    return [weight for weight in weights if weight.requires_grad and min(weight.shape[:2]) >= THINNEST]


def check_shardable(settings: TrainSettings) -> None:
    """RecipeError if the recipe's optimiser cannot be sharded."""
    if settings.optimizer == "muon":
        raise RecipeError("train.optimizer: muon needs whole matrices and FSDP2 shards them; set it to adamw")


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """The recipe's optimiser for the trainable parameters.

    Weight decay applies to matrices and kernels only (two dimensions or more).
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    rate, betas = settings.learning_rate, settings.betas
    if settings.optimizer == "muon":
        return MuonAdamW(groups, hidden_matrices(model), lr=rate, betas=betas)
    return torch.optim.AdamW(groups, lr=rate, betas=betas)
