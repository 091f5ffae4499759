"""Checks the pipeline's inputs against their limits, with one clear ValueError for each mistake. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

SIZE_MULTIPLE = 32  # pixels; the autoencoder divides by 8, the full-size UNet by 4
MAX_SIZE = 4096
MAX_STEPS = 1000
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def check_prompts(prompt: Any, negative_prompt: Any) -> None:
    """Raise ValueError unless both are texts or lists of texts of the same length; `negative_prompt` may be None."""
    if not _is_text(prompt):
        raise ValueError(f"prompt is {prompt!r}, expected a string or a non-empty list of strings")
    if negative_prompt is not None and not _is_text(negative_prompt):
        raise ValueError(f"negative_prompt is {negative_prompt!r}, expected a string or a list of strings")
    if isinstance(negative_prompt, list) and len(negative_prompt) != (1 if isinstance(prompt, str) else len(prompt)):
        raise ValueError("negative_prompt is a list of another length than prompt: one for each prompt expected")


def check_size(height: Any, width: Any) -> None:
    """Raise ValueError unless both are sides, in pixels, that the networks can generate."""
    for name, size in (("height", height), ("width", width)):
        if not _is_whole(size, SIZE_MULTIPLE, MAX_SIZE) or size % SIZE_MULTIPLE:
            raise ValueError(
                f"{name} is {size!r}, expected a multiple of {SIZE_MULTIPLE} from {SIZE_MULTIPLE} to {MAX_SIZE}"
            )


def check_sampling(num_inference_steps: Any, guidance_scale: Any, num_images_per_prompt: Any, interval: Any) -> None:
    """Raise ValueError naming the first invalid setting; `interval` is the guidance's."""
    if not _is_whole(num_inference_steps, 1, MAX_STEPS):
        raise ValueError(f"num_inference_steps is {num_inference_steps!r}, expected 1 to {MAX_STEPS}")
    if not isinstance(guidance_scale, Real) or not 0 <= float(guidance_scale) < float("inf"):
        raise ValueError(
            f"guidance_scale is {guidance_scale!r}, expected a finite number of at least 0 (1: no guidance)"
        )
    if not _is_whole(num_images_per_prompt, 1, float("inf")):
        raise ValueError(f"num_images_per_prompt is {num_images_per_prompt!r}, expected at least 1")
    if not is_interval(interval):
        raise ValueError(f"guidance_interval is {interval}, expected (low, high), 0 <= low <= high <= 1")


def check_output(output_type: Any, tensor_inputs: Sequence[str], known: Sequence[str]) -> None:
    """Raise ValueError for an unknown output type, and for tensors that callbacks do not get."""
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type is {output_type!r}, expected one of {', '.join(OUTPUT_TYPES)}")
    unknown = set(tensor_inputs) - set(known)
    if unknown:
        raise ValueError(f"callback_on_step_end_tensor_inputs names {sorted(unknown)}, expected {known}")


def check_text_encoders(names: Any, own: Mapping[str, Any]) -> None:
    """Raise ValueError unless `names` are some of the model's `own` text encoders; None means all.

    own: the text encoders, or the names of their classes.
    """
    if names is None:
        return
    if isinstance(names, str) or not names or not set(names) <= set(own):
        kinds = {name: kind if isinstance(kind, str) else type(kind).__name__ for name, kind in own.items()}
        listed = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
        only = ", the only one of this model" if len(own) == 1 else ""
        raise ValueError(f"text_encoders is {names!r}, expected some of {listed}{only}")


def is_interval(value: Sequence[float]) -> bool:
    """Whether `value` is a pair of noise levels (lowest, highest) in [0, 1]."""
    return len(value) == 2 and 0 <= value[0] <= value[1] <= 1


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and len(value) > 0 and all(isinstance(text, str) for text in value)
    )


def _is_whole(value: Any, low: int, high: float) -> bool:
    return isinstance(value, Integral) and low <= int(value) <= high
