"""Checks the pipelines' inputs against their limits, with one clear ValueError for each mistake. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

SIZE_MULTIPLE = 32  # pixels; the autoencoder divides by 8, the full-size UNet by 4
MAX_SIZE = 4096
MAX_STEPS = 1000
STRENGTH = 0.6  # how much a given picture is changed by default, as in diffusers' pipelines for SD3
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def check_prompts(prompt: Any, negative_prompt: Any, count: int | None = None) -> None:
    """Raise ValueError unless both are texts or lists of texts of the same length; `negative_prompt` may be None.

    count: of the texts, where they are given as `prompt_embeds`; `prompt` must then be None.
    """
    if count is None and not _is_text(prompt):
        raise ValueError(f"prompt is {prompt!r}, expected a string or a non-empty list of strings, or prompt_embeds")
    if count is not None and prompt is not None:
        raise ValueError("prompt and prompt_embeds are both given, expected one of them")
    if negative_prompt is not None and not _is_text(negative_prompt):
        raise ValueError(f"negative_prompt is {negative_prompt!r}, expected a string or a list of strings")
    count = count or (1 if isinstance(prompt, str) else len(prompt))
    if isinstance(negative_prompt, list) and len(negative_prompt) != count:
        raise ValueError("negative_prompt is a list of another length than prompt: one for each prompt expected")


def check_embeds(name: str, embeds: Any, mask: Any, width: int | None) -> None:
    """Raise ValueError unless these are text states B N D and their mask B N, or both None.

    name: of the states, "prompt_embeds" or "negative_prompt_embeds". width: D of the network, if known.
    """
    mask_name = name.replace("embeds", "attention_mask")
    if (embeds is None) != (mask is None):
        raise ValueError(f"{name} and {mask_name} belong together: give both, as encode_prompt returns them, or none")
    if embeds is None:
        return
    if embeds.ndim != 3 or (width is not None and embeds.shape[-1] != width):
        raise ValueError(f"{name} has shape {tuple(embeds.shape)}, expected (texts, tokens, {width or 'width'})")
    if tuple(mask.shape) != tuple(embeds.shape[:2]):
        raise ValueError(f"{mask_name} has shape {tuple(mask.shape)}, expected {tuple(embeds.shape[:2])} as {name}")
    if not mask.bool().any(dim=1).all():
        raise ValueError(f"{mask_name} hides all tokens of a text, expected at least one that is visible")


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
    if not _is_number(guidance_scale) or not 0 <= float(guidance_scale) < float("inf"):
        raise ValueError(
            f"guidance_scale is {guidance_scale!r}, expected a finite number of at least 0 (up to 1: no guidance)"
        )
    if not _is_whole(num_images_per_prompt, 1, float("inf")):
        raise ValueError(f"num_images_per_prompt is {num_images_per_prompt!r}, expected at least 1")
    if not is_interval(interval):
        raise ValueError(f"guidance_interval is {interval}, expected (low, high), 0 <= low <= high <= 1")


def check_sigmas(sigmas: Any, num_inference_steps: Any) -> list[float]:
    """The noise levels of a schedule of the user's; ValueError unless they fall, from at most 1 to above 0."""
    levels = sigmas.tolist() if hasattr(sigmas, "tolist") else sigmas
    if not isinstance(levels, list | tuple) or not 1 <= len(levels) <= MAX_STEPS:
        raise ValueError(f"sigmas is {sigmas!r}, expected a list of 1 to {MAX_STEPS} noise levels")
    falling = all(map(_is_number, levels)) and all(a > b for a, b in zip(levels, [*levels[1:], 0], strict=True))
    if not falling or levels[0] > 1:
        raise ValueError(f"sigmas is {levels}, expected falling levels in (0, 1]; the step to 0 follows by itself")
    if num_inference_steps not in (None, len(levels)):
        raise ValueError(f"num_inference_steps is {num_inference_steps!r}, but sigmas has {len(levels)} levels")
    return [float(level) for level in levels]


def check_sequence_length(value: Any, longest: int) -> None:
    """Raise ValueError unless `value` is a number of tokens that a language model may read; None is its own."""
    if value is not None and not _is_whole(value, 1, longest):
        raise ValueError(f"max_sequence_length is {value!r}, expected 1 to {longest} tokens")


def check_strength(strength: Any, steps: int) -> None:
    """Raise ValueError unless `strength` is in [0, 1] and leaves at least one of `steps`."""
    if not _is_number(strength) or not 0 <= strength <= 1:
        raise ValueError(f"strength is {strength!r}, expected 0 to 1 (1: nothing of the picture is kept)")
    if skipped_steps(steps, strength) == steps:
        raise ValueError(f"strength {strength} leaves none of {steps} steps: raise it, or num_inference_steps")


def skipped_steps(steps: int, strength: float) -> int:
    """How many of `steps` are skipped for a start from a picture, counted as diffusers counts them."""
    return int(max(steps - min(steps * strength, steps), 0))


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


def is_interval(value: Any) -> bool:
    """Whether `value` is a pair of noise levels (lowest, highest) in [0, 1]."""
    pair = isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value))
    return pair and 0 <= value[0] <= value[1] <= 1


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and len(value) > 0 and all(isinstance(text, str) for text in value)
    )


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real)


def _is_whole(value: Any, low: int, high: float) -> bool:
    # True and False are numbers to Python, but nobody means them.
    return not isinstance(value, bool) and isinstance(value, Integral) and low <= int(value) <= high
