"""Loads text encoders from disk or the hub, as components of a pipeline."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from snapgen.messages import one_line
from snapgen.text.join import TEXT_ENCODERS, tokenizer_of
from snapgen.weights import load_config, load_network, load_pretrained

# Models with a second half that is not needed and would waste memory or ask for inputs: load their text half alone.
TEXT_HALVES = {"clip": "CLIPTextModel", "t5": "T5EncoderModel", "umt5": "UMT5EncoderModel"}

# The text models that a pipeline may name; whatever is not listed is refused, whoever names it.
TEXT_MODELS = frozenset(TEXT_HALVES.values()) | {
    "BertModel",
    "CLIPTextModelWithProjection",
    "DebertaV2Model",
    "Gemma2Model",
    "Gemma3TextModel",
    "GemmaModel",
    "LlamaModel",
    "MistralModel",
    "ModernBertModel",
    "Phi3Model",
    "Qwen2Model",
    "Qwen3Model",
    "RobertaModel",
    "SiglipTextModel",
    "XLMRobertaModel",
}

FEW_TOKENS = 64  # room for the special tokens of any tokenizer


def load_text_encoders(sources: Sequence[str], dtype: torch.dtype) -> dict[str, Any]:
    """Frozen text models in `dtype` and their tokenizers, named like a pipeline's components.

    Each of `sources` is a folder with text_encoder/ and tokenizer/ (and text_encoder_2/ ..., as in pipelines), or the
    folder or hub name of one text model of transformers with its tokenizer. ValueError names what cannot be loaded.
    """
    places = [place for source in sources for place in _places(source)]
    if not 1 <= len(places) <= len(TEXT_ENCODERS):
        raise ValueError(f"{len(places)} text encoders in {', '.join(sources)}, expected 1 to {len(TEXT_ENCODERS)}")
    components = {}
    for name, (model, tokenizer) in zip(TEXT_ENCODERS, places, strict=False):
        components[name] = _load_model(model, dtype)
        components[tokenizer_of(name)] = load_tokenizer("AutoTokenizer", tokenizer)
        check_vocabulary(components[name], components[tokenizer_of(name)], tokenizer)
    return components


def load_tokenizer(class_name: str, place: str) -> Any:
    """The tokenizer in the folder or hub name `place`, one that needs nothing but data; otherwise ValueError."""
    kind: Any = getattr(transformers, class_name, None)
    if not hasattr(kind, "from_pretrained"):
        raise ValueError(f"{place} is a transformers.{class_name}, which is no tokenizer")
    tokenizer = load_pretrained(kind.from_pretrained, place)
    if not isinstance(tokenizer, transformers.TokenizersBackend):
        raise ValueError(f"{place} is a {type(tokenizer).__name__}: a tokenizer of the library tokenizers is expected")
    length = tokenizer.model_max_length
    if not isinstance(length, int) or length < 1 or isinstance(length, bool):
        raise ValueError(f"{place}: model_max_length is {reprlib.repr(length)}, expected a number of tokens")
    return tokenizer


def check_vocabulary(model: Any, tokenizer: Any, place: str) -> None:
    """ValueError if the tokenizer in `place` cannot pad, or writes tokens that the text model does not know."""
    known, length = model.get_input_embeddings().num_embeddings, min(tokenizer.model_max_length, FEW_TOKENS)
    try:
        ids = tokenizer("a", padding="max_length", truncation=True, max_length=length)["input_ids"]
    except Exception as error:  # of the library's Rust and Python halves
        raise ValueError(f"{place} does not work: {one_line(error, 200)}") from error
    if len(ids) != length:
        raise ValueError(f"{place} makes {len(ids)} tokens of one letter where {length} are asked for")
    largest = max(0, *tokenizer.get_vocab().values(), *ids)
    if largest >= known:
        raise ValueError(f"{place} writes token {largest}, but {type(model).__name__} knows only {known} tokens")


def _places(source: str) -> list[tuple[str, str]]:
    """Folders or hub names of the models in `source`, each with that of its tokenizer."""
    folder = Path(source)
    names = [name for name in TEXT_ENCODERS if (folder / name).is_dir()]
    return [(str(folder / name), str(folder / tokenizer_of(name))) for name in names] or [(source, source)]


def _load_model(place: str, dtype: torch.dtype) -> torch.nn.Module:
    kind = str(load_config(transformers.AutoModel, place).get("model_type"))
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # transformers lists the other half's tensors
    try:
        model = load_network(getattr(transformers, TEXT_HALVES.get(kind, "AutoModel")), place, dtype=dtype)
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
    if type(model).__name__ not in TEXT_MODELS:
        raise ValueError(f"{place} is a {type(model).__name__}: one of {', '.join(sorted(TEXT_MODELS))} is expected")
    return model.eval().requires_grad_(False)
