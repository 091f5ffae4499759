"""Frozen text encoders behind one protocol: prompts in, token states and their mask out.

Any text model of transformers fits (`TransformersTextEncoder`). The empty prompt means "no text": its states are
zeros and only its first token is visible. It is the unconditional branch of classifier-free guidance, both in
training (a dropped caption) and at inference (the negative prompt).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class TextStates:
    """What cross-attention reads: `states` B N D, and `mask` B N, True where a token may be attended.

    `pooled`, B P, is a summary of the whole text; None if there is no CLIP to give one.
    """

    states: Tensor
    mask: Tensor
    pooled: Tensor | None = None

    @staticmethod
    def cat(parts: Sequence[TextStates]) -> TextStates:
        """One batch made of `parts`, which must all have the same number of tokens."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return TextStates(
            torch.cat([part.states for part in parts]),
            torch.cat([part.mask for part in parts]),
            torch.cat(pooled) if pooled else None,
        )

    def split(self, size: int | list[int]) -> list[TextStates]:
        """The batch in pieces of `size` elements, the last may be smaller, or of these sizes."""
        states, mask = self.states.split(size), self.mask.split(size)
        pooled = [None] * len(mask) if self.pooled is None else self.pooled.split(size)
        return [TextStates(*part) for part in zip(states, mask, pooled, strict=True)]

    def repeat(self, count: int) -> TextStates:
        """The batch with every element repeated `count` times in a row."""
        return TextStates(
            self.states.repeat_interleave(count, dim=0),
            self.mask.repeat_interleave(count, dim=0),
            None if self.pooled is None else self.pooled.repeat_interleave(count, dim=0),
        )

    def to(self, device: torch.device, dtype: torch.dtype) -> TextStates:
        """The same on `device`, all but the mask in `dtype`."""
        pooled = None if self.pooled is None else self.pooled.to(device, dtype)
        return TextStates(self.states.to(device, dtype), self.mask.to(device), pooled)

    def trimmed(self) -> TextStates:
        """The states without tokens that are masked in the whole batch: they cost time and change nothing."""
        seen = self.mask.any(dim=0)
        return TextStates(self.states[:, seen], self.mask[:, seen], self.pooled)


class TextEncoder(Protocol):
    """Prompts -> `TextStates` of a fixed length, so that a prompt's states do not depend on its neighbours."""

    width: int  # D
    max_length: int  # N, tokens
    is_clip: bool  # CLIPs stand side by side, and have a pooled vector

    def __call__(self, prompts: list[str]) -> TextStates:
        """Encodes `prompts`; longer ones are truncated to `max_length` tokens with a warning."""
        ...


LANGUAGE_MAX_LENGTH = 300  # tokens used of a language model, as in Sana's use of Gemma


def is_clip(model: Any) -> bool:
    """Whether a text model of transformers is CLIP's; any other counts as a language model."""
    return str(model.config.model_type).startswith("clip")


class TransformersTextEncoder:
    """A text model and tokenizer of transformers as a `TextEncoder`.

    CLIP's states are those of the penultimate layer, before the final norm, as in Stable Diffusion 3; any other
    model's are its last hidden states. Either way each token is scaled to unit RMS. CLIP's pooled vector is that of the
    last token, after the final norm and before any projection, which a network that reads it can learn to apply.

    `prefix` is an instruction put before every prompt (Sana's use of Gemma): it influences the prompt's states, but its
    own are omitted, and the empty prompt has none. `warn` reports truncated prompts; training switches it off, because
    it reads thousands of captions. `device` is where the model computes, by default where its weights are (offloaded
    weights are elsewhere).
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        max_length: int | None = None,
        prefix: str = "",
        warn: bool = True,
        device: torch.device | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.prefix = prefix
        self.warn = warn
        self.device = device
        self.width: int = model.config.hidden_size
        self.is_clip = is_clip(model)
        longest = model.config.max_position_embeddings if self.is_clip else LANGUAGE_MAX_LENGTH
        self.max_length = max_length or min(tokenizer.model_max_length, longest)
        # Without the final space, which many tokenizers make part of the following word.
        self.prefix_length = len(tokenizer(prefix.rstrip(), add_special_tokens=False)["input_ids"]) if prefix else 0
        self.prefix_start = int(bool(prefix) and tokenizer(prefix)["input_ids"][0] == tokenizer.bos_token_id)

    def tokenize(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask, both B N', padded on the right to `prefix_length` and `max_length`."""
        texts = [self.prefix + prompt for prompt in prompts]
        length = self.prefix_length + self.max_length
        if self.warn:
            self._warn_of_cuts(prompts, texts)
        tokens = self.tokenizer(
            texts,
            padding="max_length",
            padding_side="right",
            truncation=True,
            max_length=length,
            return_tensors="pt",
        )
        return tokens["input_ids"], tokens["attention_mask"]

    def _warn_of_cuts(self, prompts: list[str], texts: list[str]) -> None:
        for prompt, ids in zip(prompts, self.tokenizer(texts, verbose=False)["input_ids"], strict=True):
            count = len(ids) - self.prefix_length
            if count > self.max_length:
                short = prompt if len(prompt) <= 40 else prompt[:37] + "..."
                warnings.warn(
                    f"prompt '{short}' has {count} tokens; the text encoder reads the first {self.max_length}",
                    stacklevel=3,
                )

    @torch.no_grad()
    def __call__(self, prompts: list[str]) -> TextStates:
        """States B N D in the model's dtype, on the device where it computes."""
        device = self.model.device if self.device is None else self.device
        is_empty = [not prompt.strip() for prompt in prompts]
        empty = torch.tensor(is_empty, device=device)
        first = torch.arange(self.max_length, device=device) == 0
        if all(is_empty):  # nothing to read: an omitted encoder costs nothing
            stored = self.model.dtype  # in 8 bits it is only stored, and computes in more
            dtype = stored if stored.itemsize > 1 else torch.float32
            states = torch.zeros(len(prompts), self.max_length, self.width, device=device, dtype=dtype)
            return TextStates(states, first.repeat(len(prompts), 1), states[:, 0] if self.is_clip else None)
        ids, attention = (part.to(device) for part in self.tokenize(prompts))
        output = self.model(input_ids=ids, attention_mask=attention, output_hidden_states=True)
        hidden = self._without_prefix(output.hidden_states[-2 if self.is_clip else -1])
        mask = torch.where(empty[:, None], first, self._without_prefix(attention).bool())
        # Unit RMS for every token: encoders differ by orders of magnitude, and their states are joined side by side.
        states = F.rms_norm(hidden, (self.width,)) * mask[..., None]  # zeros where masked
        pooled = output.pooler_output.masked_fill(empty[:, None], 0.0) if self.is_clip else None
        return TextStates(states.masked_fill(empty[:, None, None], 0.0), mask, pooled)

    def _without_prefix(self, tokens: Tensor) -> Tensor:
        """B N' ... -> B N ...: keeps the token that starts every text, if there is one, and what follows the prefix."""
        start = self.prefix_start
        return torch.cat([tokens[:, :start], tokens[:, start + self.prefix_length :]], dim=1)
