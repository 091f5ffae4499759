"""Joins the states of several text encoders as Stable Diffusion 3 does (Sec. 4: CLIP-L, CLIP-G and Gemma-2-2b).

CLIP states are concatenated along the features and zero-padded to the language model's width; the language model's
tokens follow along the sequence. An omitted encoder reads the empty prompt: it contributes zeros, with only the
first token visible.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from snapgen.text.encoder import LANGUAGE_MAX_LENGTH, TextEncoder, TextStates, TransformersTextEncoder, is_clip

TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")  # a pipeline's components, in their order


def tokenizer_of(text_encoder: str) -> str:
    """The name of the tokenizer that belongs to the component `text_encoder`."""
    return text_encoder.replace("text_encoder", "tokenizer")


def join(clips: list[TextStates], language: TextStates | None = None) -> TextStates:
    """One context from CLIP states (all of one length; may be empty if `language` is given) and a language model's."""
    parts: list[TextStates] = []
    if clips:
        lengths = {clip.states.shape[1] for clip in clips}
        if len(lengths) != 1:
            raise ValueError(f"CLIP states of {sorted(lengths)} tokens side by side: equal lengths expected")
        states = torch.cat([clip.states for clip in clips], dim=-1)
        mask = torch.stack([clip.mask for clip in clips]).any(dim=0)
        parts.append(TextStates(states, mask))
    if language is not None:
        parts.append(language)
    if not parts:
        raise ValueError("no text states to join: at least one encoder expected")
    width = max(part.states.shape[-1] for part in parts)
    return TextStates(
        torch.cat([F.pad(part.states, (0, width - part.states.shape[-1])) for part in parts], dim=1),
        torch.cat([part.mask for part in parts], dim=1),
    )


class JointTextEncoder:
    """CLIP encoders and at most one language model as one `TextEncoder`."""

    def __init__(self, clips: list[TextEncoder], language: TextEncoder | None = None) -> None:
        self.clips, self.language = clips, language
        self.encoders = [*clips, *([language] if language else [])]
        if not self.encoders:
            raise ValueError("no text encoder: at least one expected")
        self.max_length = (clips[0].max_length if clips else 0) + (language.max_length if language else 0)
        self.width = max(sum(clip.width for clip in clips), language.width if language else 0)

    @classmethod
    def from_components(
        cls,
        components: Mapping[str, Any],
        language_max_length: int = LANGUAGE_MAX_LENGTH,
        language_prefix: str = "",
        warn: bool = True,
        device: torch.device | None = None,
    ) -> JointTextEncoder:
        """The encoder made of a pipeline's text models and tokenizers, by component name; None means absent.

        CLIPs come first, then at most one language model; ValueError otherwise. `language_prefix` and
        `language_max_length` (tokens) apply to the language model alone. For `warn` and `device` see
        `TransformersTextEncoder`.
        """
        encoders = []
        for name in TEXT_ENCODERS:
            if (model := components.get(name)) is None:
                continue
            tokenizer = components[tokenizer_of(name)]
            length, prefix = None, ""
            if not is_clip(model):
                length, prefix = min(tokenizer.model_max_length, language_max_length), language_prefix
            encoders.append(TransformersTextEncoder(model, tokenizer, length, prefix, warn, device))
        if not all(encoder.is_clip for encoder in encoders[:-1]):
            kinds = ", ".join(type(encoder.model).__name__ for encoder in encoders)
            raise ValueError(f"text encoders {kinds}: CLIPs first, then at most one language model expected")
        clips: list[TextEncoder] = [encoder for encoder in encoders if encoder.is_clip]
        lengths = [clip.max_length for clip in clips]
        if len(set(lengths)) > 1:
            raise ValueError(f"CLIP text encoders of {lengths} tokens: equal lengths expected, they stand side by side")
        return cls(clips, encoders[-1] if len(clips) < len(encoders) else None)

    def __call__(self, prompts: list[str], dropped: Tensor | None = None) -> TextStates:
        """States B N D of `prompts`.

        dropped: B E, or 1 E; True where one of the E encoders (CLIPs first) is omitted for a prompt.
        """
        if dropped is None:
            dropped = torch.zeros(1, len(self.encoders), dtype=torch.bool)
        left_out = dropped.expand(len(prompts), -1).T.tolist()
        encoded = [
            encoder(["" if without else prompt for prompt, without in zip(prompts, column, strict=True)])
            for encoder, column in zip(self.encoders, left_out, strict=True)
        ]
        count = len(self.clips)
        return join(encoded[:count], encoded[count] if self.language else None)
