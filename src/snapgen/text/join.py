"""Several encoders' states joined as Stable Diffusion 3 joins its three (Sec. 4: CLIP-L, CLIP-G and Gemma-2-2b).

CLIP states stand side by side along the features, zero-padded to the language model's width; the language
model's tokens follow along the sequence. An encoder that is left out contributes what the empty prompt
contributes: zeros, of which the first token stays visible.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from snapgen.text.encoder import TextEncoder, TextStates


def absent(batch: int, length: int, width: int, device: torch.device, dtype: torch.dtype) -> TextStates:
    """The states of an encoder that is left out: zeros B N D with only the first token visible."""
    mask = torch.zeros(batch, length, dtype=torch.bool, device=device)
    mask[:, 0] = True
    return TextStates(torch.zeros(batch, length, width, device=device, dtype=dtype), mask)


def join(clips: list[TextStates], language: TextStates | None = None) -> TextStates:
    """One context from CLIP states (equal lengths, at least one unless `language` is given) and a language model's."""
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
        encoders = [*clips, *([language] if language else [])]
        if not encoders:
            raise ValueError("no text encoder: at least one expected")
        self.clips, self.language = clips, language
        self.max_length = (clips[0].max_length if clips else 0) + (language.max_length if language else 0)
        self.width = max(sum(clip.width for clip in clips), language.width if language else 0)

    def __call__(self, prompts: list[str], dropped: frozenset[int] = frozenset()) -> TextStates:
        """States B N D of `prompts`; `dropped` numbers the encoders (CLIPs first) that are left out."""
        encoded = [encoder(prompts) for encoder in [*self.clips, *([self.language] if self.language else [])]]
        for index in dropped:
            states = encoded[index].states
            batch, length, width = states.shape
            encoded[index] = absent(batch, length, width, states.device, states.dtype)
        count = len(self.clips)
        return join(encoded[:count], encoded[count] if self.language else None)
