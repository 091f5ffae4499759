"""The arguments of one call of a pipeline, as one object: the loop and its helpers read them from here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from snapgen.pipeline.inputs import STRENGTH

Callback = Callable[[Any, int, torch.Tensor, dict[str, Any]], dict[str, Any]]
Generators = torch.Generator | list[torch.Generator] | None


@dataclass(kw_only=True)
class Request:
    """What a pipeline is asked for, as its `__call__` explains; the last three are not for all pipelines."""

    prompt: str | list[str] | None
    negative_prompt: str | list[str] | None
    height: Any  # None until the pipeline puts in its own value, as for the next three
    width: Any
    num_inference_steps: Any
    guidance_scale: Any
    guidance_interval: tuple[float, float]
    num_images_per_prompt: int
    generator: Generators
    latents: torch.Tensor | None
    output_type: str
    return_dict: bool
    callback_on_step_end: Callback | None
    callback_on_step_end_tensor_inputs: list[str] | None
    text_encoders: Sequence[str] | None
    prompt_embeds: torch.Tensor | None
    prompt_attention_mask: torch.Tensor | None
    negative_prompt_embeds: torch.Tensor | None
    negative_prompt_attention_mask: torch.Tensor | None
    sigmas: Any
    max_sequence_length: int | None
    image: Any = None
    mask_image: Any = None
    strength: float = STRENGTH
