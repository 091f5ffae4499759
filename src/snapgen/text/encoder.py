"""Frozen text encoders behind one protocol: prompts in, token states and their mask out.

Any text model of transformers fits (`TransformersTextEncoder`). The empty prompt stands for "no text": its
states are zeros and only its first token is visible. That is the unconditional branch of classifier-free
guidance, at training (a dropped caption) and at inference (the negative prompt) alike.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class TextStates:
    """What cross-attention reads: `states` B N D, and `mask` B N, True where a token may be attended."""

    states: Tensor
    mask: Tensor

    @staticmethod
    def cat(parts: list[TextStates]) -> TextStates:
        """One batch of `parts`, which must have as many tokens each."""
        return TextStates(torch.cat([part.states for part in parts]), torch.cat([part.mask for part in parts]))

    def split(self, size: int) -> list[TextStates]:
        """The batch in pieces of `size`; the last may be smaller."""
        return [TextStates(*part) for part in zip(self.states.split(size), self.mask.split(size), strict=True)]

    def repeat(self, count: int) -> TextStates:
        """Every element of the batch `count` times in a row."""
        return TextStates(self.states.repeat_interleave(count, dim=0), self.mask.repeat_interleave(count, dim=0))


class TextEncoder(Protocol):
    """Prompts -> `TextStates` of a fixed length, so that a prompt's states do not depend on its neighbours."""

    width: int  # D
    max_length: int  # N, tokens

    def __call__(self, prompts: list[str]) -> TextStates:
        """Encodes `prompts`; longer ones are truncated to `max_length` tokens with a warning."""
        ...


class TransformersTextEncoder:
    """A text model and tokenizer of transformers as a `TextEncoder`.

    CLIP's states are those of the penultimate layer, before the final norm, as Stable Diffusion 3 takes them;
    any other model's are its last hidden states. Either way each token is scaled to unit RMS. `prefix` is an
    instruction put before every prompt (Sana's use of Gemma); it is not counted as part of an empty prompt.
    `warn` tells of prompts that are cut; training, where thousands of captions go by, switches it off.
    """

    def __init__(
        self, model: Any, tokenizer: Any, max_length: int | None = None, prefix: str = "", warn: bool = True
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.max_length = max_length or min(tokenizer.model_max_length, 300)
        self.prefix = prefix
        self.warn = warn
        self.width: int = model.config.hidden_size
        self.layer = -2 if model.config.model_type.startswith("clip") else -1

    def tokenize(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask, both B N, padded on the right to `max_length`."""
        texts = [self.prefix + prompt for prompt in prompts]
        if self.warn:
            self._warn_of_cuts(prompts, texts)
        tokens = self.tokenizer(
            texts,
            padding="max_length",
            padding_side="right",
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        )
        return tokens["input_ids"], tokens["attention_mask"]

    def _warn_of_cuts(self, prompts: list[str], texts: list[str]) -> None:
        for prompt, ids in zip(prompts, self.tokenizer(texts, verbose=False)["input_ids"], strict=True):
            if len(ids) > self.max_length:
                short = prompt if len(prompt) <= 40 else prompt[:37] + "..."
                warnings.warn(
                    f"prompt '{short}' has {len(ids)} tokens; the text encoder reads the first {self.max_length}",
                    stacklevel=3,
                )

    @torch.no_grad()
    def __call__(self, prompts: list[str]) -> TextStates:
        """States B N D in the model's dtype and on its device."""
        ids, attention = (part.to(self.model.device) for part in self.tokenize(prompts))
        output = self.model(input_ids=ids, attention_mask=attention, output_hidden_states=True)
        empty = torch.tensor([not prompt.strip() for prompt in prompts], device=ids.device)
        first = torch.arange(self.max_length, device=ids.device) == 0
        mask = torch.where(empty[:, None], first, attention.bool())
        # Every token to unit RMS: encoders differ by orders of magnitude, and they are joined side by side.
        states = F.rms_norm(output.hidden_states[self.layer], (self.width,)) * mask[..., None]  # zeros where masked
        return TextStates(states.masked_fill(empty[:, None, None], 0.0), mask)
