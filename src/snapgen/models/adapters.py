"""Low-rank adapters (LoRA, Hu et al. 2021): whether they fit is checked before peft adds them.

peft and diffusers ignore what does not fit, such as targets that name no layer or the weights of another network. An
adapter then changes less than expected, or nothing.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

from diffusers.loaders import PeftAdapterMixin, StableDiffusionLoraLoaderMixin
from torch import Tensor, nn


class AdapterMixin(PeftAdapterMixin):
    """A network with diffusers' adapter methods, which takes only adapters that fit."""

    def add_adapter(self, adapter_config: Any, adapter_name: str = "default") -> None:
        """diffusers' `add_adapter`, but ValueError if one of the configuration's targets names no layer."""
        check_targets(self, adapter_config.target_modules)
        super().add_adapter(adapter_config, adapter_name)

    def load_lora_adapter(
        self,
        pretrained_model_name_or_path_or_dict: Any,
        prefix: str | None = "transformer",
        hotswap: bool = False,
        **settings: Any,
    ) -> None:
        """diffusers' `load_lora_adapter`, but ValueError if no weight fits, and a warning if only some do."""
        state = pretrained_model_name_or_path_or_dict
        if not isinstance(state, dict):
            state, alphas, metadata = StableDiffusionLoraLoaderMixin.lora_state_dict(
                state, **settings | {"return_lora_metadata": True, "use_safetensors": True}
            )
            settings = {"network_alphas": alphas, "metadata": metadata} | settings
        start = f"{prefix}." if prefix else ""
        own = {key.removeprefix(start): tensor for key, tensor in state.items() if key.startswith(start)}
        if not own:
            raise ValueError(
                f"no weight of the adapter begins with '{start}': its first is {next(iter(state), 'none')}"
            )
        fitting = fitting_weights(self, own)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # so says peft of every second adapter
            super().load_lora_adapter(
                {start + key: tensor for key, tensor in fitting.items()}, prefix=prefix, hotswap=hotswap, **settings
            )


def check_targets(network: Any, targets: Any) -> None:
    """Raise ValueError if one of `targets`, a list of names as peft takes it, names no layer of `network`.

    A pattern, which is a string, is left to peft.
    """
    if targets is None or isinstance(targets, str):
        return
    paths = [f".{path}" for path, _ in network.named_modules()]
    unknown = [target for target in sorted(targets) if not any(path.endswith(f".{target}") for path in paths)]
    if unknown:
        name = type(network).__name__
        raise ValueError(f"no layer of {name} is called {', '.join(unknown)}; there are {_layer_names(network)}")


def fitting_weights(network: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapter's `weights` (by names without prefix) for layers that `network` has, in the same size.

    ValueError if there are none; one warning if there are others.
    """
    layers = dict(network.named_modules())
    misfits = dict.fromkeys(
        layer_of(key) for key, tensor in weights.items() if not _fits(key, tensor, layers.get(layer_of(key)))
    )
    fitting = {key: tensor for key, tensor in weights.items() if layer_of(key) not in misfits}
    if misfits:
        first, name = next(iter(misfits)), type(network).__name__
        reason = f"{first} has another size" if first in layers else f"there is no {first}"
        if not fitting:
            raise ValueError(f"{name} has none of the adapter's layers: {reason}, but {_layer_names(network)}")
        total = len(misfits) + len({layer_of(key) for key in fitting})
        warnings.warn(
            f"{len(misfits)} of {total} layers of the adapter do not fit {name} and are ignored: {reason}", stacklevel=1
        )
    return fitting


def layer_of(key: str) -> str:
    """The path of the layer that the weight `key` of an adapter belongs to."""
    return re.split(r"\.(?:lora|lokr)[._]", key)[0]


def _layer_names(network: Any) -> str:
    """The last parts of the paths of the linear layers, without those that another kind of layer has, too."""
    linear: set[str] = set()
    others: set[str] = set()
    adapted: tuple[str, ...] = ()
    for path, module in network.named_modules():
        if path.startswith(adapted):
            continue  # inside a layer that has an adapter already
        base = getattr(module, "base_layer", module)
        if base is not module:
            adapted += (f"{path}.",)
        (linear if isinstance(base, nn.Linear) else others).add(path.rpartition(".")[2])
    names = ", ".join(sorted(linear - others))
    return f"{names} (to_k and to_v are one layer, to_kv; to_out.0 is to_out)" if "to_kv" in linear else names


def _fits(key: str, tensor: Tensor, layer: nn.Module | None) -> bool:
    """Whether `layer` exists and, if it is linear, has as many features as the adapter reads or gives."""
    weight = getattr(layer, "weight", None)
    if weight is None:
        return False
    if tensor.ndim != 2 or weight.ndim != 2:
        return True
    if key.endswith((".lora_A.weight", ".down.weight")):
        return tensor.shape[1] == int(weight.shape[1])
    return not key.endswith((".lora_B.weight", ".up.weight")) or tensor.shape[0] == int(weight.shape[0])
