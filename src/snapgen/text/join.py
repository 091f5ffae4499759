"""Joins the states of several text encoders as Stable Diffusion 3 does (Sec. 4: CLIP-L, CLIP-G and Gemma-2-2b).

CLIP states are concatenated along the features and zero-padded to the language model's width; the language model's
tokens follow along the sequence. A model's `TextLayout` says which tokens and columns belong to which encoder. One that
is absent, or omitted for a prompt, reads the empty prompt: it contributes zeros, with only the first token visible.

What differs from Stable Diffusion 3, so that any subset of encoders serves:
- Each token is scaled to unit RMS, since the encoders' states differ by orders of magnitude.
- Padding is masked. There, the transformer attends to it.
- The empty prompt is zeros. There, it is encoded like any other, and only a missing T5 is zeros.
- The pooled vector of the CLIPs is used only if the UNet asks for it (`pooled_projection_dim`), and unprojected.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from snapgen.text.encoder import LANGUAGE_MAX_LENGTH, TextEncoder, TextStates, TransformersTextEncoder, is_clip

LONGEST = 2**14  # tokens or columns; whoever joins states makes room for all
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")  # a pipeline's components, in their order


def tokenizer_of(text_encoder: str) -> str:
    """The name of the tokenizer that belongs to the component `text_encoder`."""
    return text_encoder.replace("text_encoder", "tokenizer")


@dataclass(frozen=True)
class TextPlace:
    """Where an encoder's states stand in the joined ones."""

    tokens: tuple[int, int]  # first, and one past the last
    columns: tuple[int, int]
    pooled: bool  # a CLIP: it also has a pooled vector, in the same columns of the joined one

    @property
    def length(self) -> int:
        """Tokens."""
        return self.tokens[1] - self.tokens[0]

    @property
    def width(self) -> int:
        """Columns."""
        return self.columns[1] - self.columns[0]


@dataclass(frozen=True)
class TextLayout:
    """The place of each text encoder, by the name of its component. It belongs to a model, whichever are loaded."""

    places: Mapping[str, TextPlace]

    @classmethod
    def of(cls, encoders: Mapping[str, TextEncoder]) -> TextLayout:
        """That of these encoders: CLIPs side by side, then the tokens of at most one language model.

        ValueError if they come in another order, or if CLIPs have different lengths.
        """
        if not encoders:
            raise ValueError("no text encoder: at least one expected")
        if not all(encoder.is_clip for encoder in list(encoders.values())[:-1]):
            kinds = ", ".join(type(getattr(encoder, "model", encoder)).__name__ for encoder in encoders.values())
            raise ValueError(f"text encoders {kinds}: CLIPs first, then at most one language model expected")
        lengths = [encoder.max_length for encoder in encoders.values() if encoder.is_clip]
        if len(set(lengths)) > 1:
            raise ValueError(f"CLIP text encoders of {lengths} tokens: equal lengths expected, they stand side by side")
        return cls.of_sizes(
            {name: (encoder.max_length, encoder.width, encoder.is_clip) for name, encoder in encoders.items()}
        )

    @classmethod
    def of_sizes(cls, sizes: Mapping[str, tuple[int, int, bool]]) -> TextLayout:
        """That of encoders of so many tokens and columns, CLIPs or not."""
        places, column = {}, 0
        clip_length = max((length for length, _, clip in sizes.values() if clip), default=0)
        for name, (length, width, clip) in sizes.items():
            token, start = (0, column) if clip else (clip_length, 0)
            places[name] = TextPlace((token, token + length), (start, start + width), clip)
            column = start + width
        return cls(places)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> TextLayout:
        """The layout that `to_config` gave; ValueError if it is none."""
        try:
            layout = cls(
                {
                    name: TextPlace(_span(place["tokens"]), _span(place["columns"]), place["pooled"] is True)
                    for name, place in sorted(config.items())
                }
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            layout = cls({})
        places = layout.places
        expected = cls.of_sizes({name: (place.length, place.width, place.pooled) for name, place in places.items()})
        if not places or not places.keys() <= set(TEXT_ENCODERS) or layout != expected:
            raise ValueError(
                f"text_layout is {reprlib.repr(config)}, expected the tokens, columns and pooled of some of "
                f"{list(TEXT_ENCODERS)}: CLIPs side by side, then a language model's tokens, at most {LONGEST} of each"
            )
        return layout

    def check_columns(self, config: Mapping[str, Any] | None) -> None:
        """ValueError unless `config`, another model's layout if it has one, has the same columns.

        The numbers of tokens may differ: attention does not depend on them.
        """
        if config is None:
            return
        there, here = (
            ", ".join(f"{name} in columns {place.columns[0]} to {place.columns[1]}" for name, place in places.items())
            for places in (TextLayout.from_config(config).places, self.places)
        )
        if there != here:
            raise ValueError(f"it reads {there}, not {here}: the same text encoders in the same order expected")

    def to_config(self) -> dict[str, Any]:
        """As JSON: `{"text_encoder": {"tokens": [0, 77], "columns": [0, 768], "pooled": true}, ...}`."""
        return {
            name: {"tokens": list(place.tokens), "columns": list(place.columns), "pooled": place.pooled}
            for name, place in self.places.items()
        }

    def with_language_tokens(self, count: int) -> TextLayout:
        """The same, but with `count` tokens of a language model."""
        return TextLayout(
            {
                name: place if place.pooled else replace(place, tokens=(place.tokens[0], place.tokens[0] + count))
                for name, place in self.places.items()
            }
        )

    @property
    def length(self) -> int:
        """Tokens of the joined states."""
        return max(place.tokens[1] for place in self.places.values())

    @property
    def width(self) -> int:
        """Columns of the joined states."""
        return max(place.columns[1] for place in self.places.values())

    @property
    def pooled_width(self) -> int:
        """Columns of the joined pooled vector; 0 without CLIPs."""
        return max((place.columns[1] for place in self.places.values() if place.pooled), default=0)

    def join(self, texts: Mapping[str, TextStates], count: int) -> TextStates:
        """The states B N D of `count` prompts, from those of each encoder by name; absent ones contribute zeros."""
        like = next((text.states for text in texts.values()), torch.zeros(0))
        dtype = reduce(torch.promote_types, (text.states.dtype for text in texts.values()), like.dtype)
        joined = TextStates(
            torch.zeros(count, self.length, self.width, device=like.device, dtype=dtype),
            torch.zeros(count, self.length, device=like.device, dtype=torch.bool),
            torch.zeros(count, self.pooled_width, device=like.device, dtype=dtype) if self.pooled_width else None,
        )
        for name, place in self.places.items():
            tokens, columns = slice(*place.tokens), slice(*place.columns)
            if name not in texts:
                joined.mask[:, place.tokens[0]] = True
                continue
            text = texts[name]
            joined.states[:, tokens, columns] = text.states
            joined.mask[:, tokens] |= text.mask
            if joined.pooled is not None and text.pooled is not None:
                joined.pooled[:, columns] = text.pooled
        return joined


def _span(values: Any) -> tuple[int, int]:
    start, end = values
    if not (type(start) is type(end) is int and 0 <= start < end <= LONGEST):
        raise ValueError(f"{values} is no span")
    return start, end


class JointTextEncoder:
    """Some or all of a model's text encoders as one `TextEncoder`."""

    is_clip = False

    def __init__(self, encoders: Mapping[str, TextEncoder], layout: TextLayout | None = None) -> None:
        """`encoders`: by the names of their components; `layout`: the model's, by default that of `encoders`.

        ValueError if an encoder has no place in it, or another width or length than its place.
        """
        self.layout = TextLayout.of(encoders) if layout is None else layout
        self.encoders = dict(encoders)
        for name, encoder in encoders.items():
            place = self.layout.places.get(name)
            if place is None:
                raise ValueError(f"{name} has no place in the model's text layout: {', '.join(self.layout.places)} do")
            if (encoder.width, encoder.max_length) != (place.width, place.length):
                raise ValueError(
                    f"{name} gives {encoder.max_length} states of width {encoder.width}, "
                    f"the model's text layout has {place.length} of width {place.width} for it"
                )
        self.max_length, self.width = self.layout.length, self.layout.width

    @classmethod
    def from_components(
        cls,
        components: Mapping[str, Any],
        language_max_length: int = LANGUAGE_MAX_LENGTH,
        language_prefix: str = "",
        warn: bool = True,
        device: torch.device | None = None,
        layout: TextLayout | None = None,
    ) -> JointTextEncoder:
        """The encoder made of a pipeline's text models and tokenizers, by component name; None means absent.

        ValueError if they do not fit together or `layout`. `language_prefix` and `language_max_length` (tokens; ignored
        with a layout, which fixes them) apply to a language model alone. For `warn` and `device` see
        `TransformersTextEncoder`.
        """
        encoders: dict[str, TextEncoder] = {}
        for name in TEXT_ENCODERS:
            if (model := components.get(name)) is None:
                continue
            tokenizer, clip = components.get(tokenizer_of(name)), is_clip(model)
            if tokenizer is None:
                raise ValueError(f"{name} is given without its {tokenizer_of(name)}")
            length = None if clip else min(tokenizer.model_max_length, language_max_length)
            if layout is not None and name in layout.places:
                length = layout.places[name].length
            prefix = "" if clip else language_prefix
            encoders[name] = TransformersTextEncoder(model, tokenizer, length, prefix, warn, device)
        return cls(encoders, layout)

    def __call__(self, prompts: list[str], dropped: Tensor | None = None, together: int | None = None) -> TextStates:
        """States B N D of `prompts`.

        dropped: B E, or 1 E; True where one of the E encoders is omitted for a prompt, as if it were absent.
        together: how many prompts an encoder reads at once, by default all. It reads all before the next one starts, so
        that one that is offloaded is moved only once.
        """
        if dropped is None:
            dropped = torch.zeros(1, len(self.encoders), dtype=torch.bool)
        omitted = dropped.expand(len(prompts), -1).T.tolist()
        size, encoded = together or len(prompts), {}
        for (name, encoder), column in zip(self.encoders.items(), omitted, strict=True):
            texts = ["" if without else prompt for prompt, without in zip(prompts, column, strict=True)]
            encoded[name] = TextStates.cat(
                [encoder(texts[start : start + size]) for start in range(0, len(texts), size)]
            )
        return self.layout.join(encoded, len(prompts))
