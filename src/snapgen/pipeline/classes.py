"""The classes that a model folder may name, and the numbers that it may set; everything else is refused.

A `model_index.json` names the class of every part of a pipeline. It is data from anyone: it chooses among the classes
here, and neither brings nor finds another. docs/security.md says what else is checked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from snapgen.files import read_json
from snapgen.messages import first_mistake, one_line
from snapgen.pipeline.inputs import MAX_STEPS
from snapgen.registration import PIPELINES
from snapgen.text.load import TEXT_MODELS

AUTOENCODERS = frozenset(
    {
        "snapgen.models.autoencoder.SnapGenAutoencoder",
        "diffusers.AsymmetricAutoencoderKL",
        "diffusers.AutoencoderDC",
        "diffusers.AutoencoderKL",
        "diffusers.AutoencoderTiny",
        "diffusers.VQModel",
    }
)
DENOISERS = frozenset(
    {
        "snapgen.models.unet.SnapGenUNet",
        "snapgen.models.teacher.TeacherTransformer",
        "diffusers.SD3Transformer2DModel",
    }
)
TEXT_ENCODERS = frozenset(f"transformers.{name}" for name in TEXT_MODELS)

# By the name of the part without its number: text_encoder_2 is a text_encoder. Tokenizers are not listed: all of those
# in transformers whose name says so may be named, and only data is read for them.
SNAPGEN_PARTS = {"unet": DENOISERS, "vae": AUTOENCODERS, "text_encoder": TEXT_ENCODERS}
STABLE_DIFFUSION_PARTS = {
    "transformer": DENOISERS,
    "vae": AUTOENCODERS,
    "text_encoder": TEXT_ENCODERS,
    "scheduler": frozenset({"diffusers.FlowMatchEulerDiscreteScheduler"}),
}
TOKENIZER = re.compile(r"transformers\.((?!Auto)[A-Z]\w*(Tokenizer|TokenizerFast)|TokenizersBackend)")


class PipelineNumbers(BaseModel):
    """The settings of a pipeline, beside its parts, and their ranges."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    shift: Annotated[float, Field(gt=0, le=1000)] = 1.0
    default_guidance_scale: Annotated[float, Field(ge=0, le=1000)] = 1.0
    default_num_inference_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] = 1
    language_max_length: Annotated[int, Field(ge=1, le=8192)] = 1
    language_prefix: Annotated[str, Field(max_length=100_000)] = ""


def read_own_index(folder: Path) -> dict[str, Any]:
    """The model_index.json of a model of this package, checked; ValueError unless it describes one of its pipelines."""
    index = folder / "model_index.json"
    entries, own = read_json(index), next(iter(PIPELINES))
    name = entries.get("_class_name")  # all of them have the same parts
    check_index(entries, str(index), SNAPGEN_PARTS, name if isinstance(name, str) and name in PIPELINES else own)
    return entries


def check_index(entries: Mapping[str, Any], where: str, parts: Mapping[str, frozenset[str]], pipeline: str) -> None:
    """ValueError unless `entries`, those of the index `where`, describe a `pipeline` of classes that `parts` lists."""
    found = entries.get("_class_name")
    if found != pipeline:
        raise ValueError(f"{where} describes a {one_line(found, 100)}, expected a {pipeline}")
    for part, entry in entries.items():
        kind = kind_of(part)
        if part == "_class_name" or entry == [None, None]:
            continue
        if not isinstance(entry, list) and kind not in parts and kind != "tokenizer":
            continue  # a setting
        name = one_line(".".join(map(str, entry)) if isinstance(entry, list) else repr(entry), 100)
        if not isinstance(entry, list) or len(entry) != 2 or not is_known(part, name, parts):
            listed = ", ".join(sorted(parts.get(kind, ()))) or "no such part, or another kind of class"
            raise ValueError(f"{where}: {part[:100]} is a {name}, which is not loaded; expected: {listed}")
    try:
        PipelineNumbers.model_validate(entries)
    except ValidationError as error:
        raise ValueError(f"{where}: {first_mistake(error)}") from None


def is_known(part: str, name: str, parts: Mapping[str, frozenset[str]]) -> bool:
    """Whether a pipeline of `parts` may have the class `name`, "library.Class", as its `part`."""
    kind = kind_of(part)
    return TOKENIZER.fullmatch(name) is not None if kind == "tokenizer" else name in parts.get(kind, ())


def kind_of(part: str) -> str:
    """The name of a pipeline's part without its number."""
    return re.sub(r"_[23]$", "", part)
