"""What the tests of offloading share."""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import accelerate.hooks
import pytest
import torch
from diffusers.hooks.group_offloading import ModuleGroup
from torch import nn


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offloaded weights are NaN until a hook of accelerate (whole models) or diffusers (groups) brings them back."""
    kept: dict[torch.Tensor, torch.Tensor] = {}

    def forget(tensors: Iterable[torch.Tensor]) -> None:
        for tensor in tensors:
            if tensor.is_floating_point() and tensor not in kept:
                kept[tensor] = tensor.data.clone()
                tensor.data.fill_(torch.nan)

    def remember(tensors: Iterable[torch.Tensor]) -> None:
        for tensor in tensors:
            if tensor in kept:
                tensor.data.copy_(kept.pop(tensor))

    def of_model(module: nn.Module) -> Iterator[torch.Tensor]:
        return chain(module.parameters(), module.buffers())

    def of_group(group: ModuleGroup) -> Iterator[torch.Tensor]:
        return chain(group.parameters, group.buffers, *map(of_model, group.modules))

    def onload_model(hook: Any, module: nn.Module, *arguments: Any, **named: Any) -> Any:
        if hook.prev_module_hook is not None:
            hook.prev_module_hook.offload()
        remember(of_model(module))
        return arguments, named

    monkeypatch.setattr(
        accelerate.hooks.CpuOffload, "init_hook", lambda hook, module: forget(of_model(module)) or module
    )
    monkeypatch.setattr(accelerate.hooks.CpuOffload, "pre_forward", onload_model)
    monkeypatch.setattr(ModuleGroup, "offload_", lambda group: forget(of_group(group)))
    monkeypatch.setattr(ModuleGroup, "onload_", lambda group: remember(of_group(group)))
