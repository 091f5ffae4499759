"""Loads adapters (LoRA) into a pipeline as diffusers does, but reports what does not fit, and nothing else."""

from __future__ import annotations

import warnings
from typing import Any

from diffusers.loaders import StableDiffusionLoraLoaderMixin
from torch import Tensor

from snapgen.models.adapters import fitting_weights
from snapgen.weights import check_healthy


class AdapterLoader(StableDiffusionLoraLoaderMixin):
    """diffusers' loader of adapters for the UNet (`unet.`) and the first text encoder (`text_encoder.`).

    diffusers warns of each of the two that an adapter is not for, and is silent about weights for neither.
    """

    @classmethod
    def lora_state_dict(cls, pretrained_model_name_or_path_or_dict: Any, **settings: Any) -> Any:
        """diffusers' `lora_state_dict`; it reads safetensors alone, and only finite weights (ValueError)."""
        loaded = super().lora_state_dict(pretrained_model_name_or_path_or_dict, **settings | {"use_safetensors": True})
        check_healthy(loaded[0] if isinstance(loaded, tuple) else loaded, "the adapter")
        return loaded

    @classmethod
    def load_lora_into_unet(
        cls, state_dict: dict[str, Tensor], network_alphas: Any, unet: Any, **settings: Any
    ) -> None:
        """diffusers' `load_lora_into_unet`; ValueError if nothing fits, unless the adapter is for the text encoder."""
        parts = tuple(f"{part}." for part in cls._lora_loadable_modules)
        strangers = [key for key in state_dict if not key.startswith(parts)]
        if 0 < len(strangers) < len(state_dict):
            warnings.warn(
                f"{len(strangers)} of {len(state_dict)} weights of the adapter are ignored: they begin with none of "
                f"{', '.join(parts)}, such as {strangers[0]}",
                stacklevel=1,
            )
        if not _part_of(state_dict, cls.text_encoder_name) or _part_of(state_dict, cls.unet_name):
            super().load_lora_into_unet(state_dict, network_alphas, unet, **settings)

    @classmethod
    def load_lora_into_text_encoder(
        cls, state_dict: dict[str, Tensor], network_alphas: Any, text_encoder: Any, **settings: Any
    ) -> None:
        """diffusers' `load_lora_into_text_encoder`, if the adapter has weights for it; ValueError if none fits."""
        own = _part_of(state_dict, cls.text_encoder_name)
        if not own:
            return
        if text_encoder is None:
            raise ValueError(f"the adapter has weights for {cls.text_encoder_name}, which this pipeline lacks")
        flat = "" if hasattr(text_encoder, "text_model") else "text_model."  # older adapters have it, newer CLIPs not
        fitting_weights(text_encoder, {key.removeprefix(flat): tensor for key, tensor in own.items()})
        super().load_lora_into_text_encoder(state_dict, network_alphas, text_encoder, **settings)


def _part_of(state: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """The weights of `state` for the pipeline's component `part`, without its name."""
    return {key.removeprefix(f"{part}."): tensor for key, tensor in state.items() if key.startswith(f"{part}.")}
