"""Strictly loads pipelines, autoencoders and adapters by bundled name, folder or hub name.

diffusers and transformers fill missing weights with random numbers and only warn. Whoever asks for a model wants that
model, so here a missing, unexpected or misshapen weight is a one-line error that names the place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snapgen.files import read_json
from snapgen.messages import one_line
from snapgen.pipeline.bundled import BUNDLED
from snapgen.pipeline.inputs import check_text_encoders

if TYPE_CHECKING:
    import torch

    from snapgen.pipeline.text_to_image import SnapGenPipeline

INDEX = "model_index.json"
ADAPTERS = "pytorch_lora_weights.safetensors"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")  # owner/name


def check_model_name(model: str) -> None:
    """Raise ValueError unless `model` is a bundled model, a model folder or a possible name on the hub."""
    folder = Path(model)
    if model in BUNDLED:
        return
    if folder.is_dir():
        if not (folder / INDEX).is_file():
            raise ValueError(f"'{model}' is not a model folder: it has no {INDEX}")
    elif folder.exists():
        raise ValueError(f"'{model}' is a file: a model is a folder with a {INDEX}")
    elif not HUB_NAME.fullmatch(model):
        names = "', '".join(BUNDLED)
        raise ValueError(f"there is no model '{model}': use '{names}', a model folder, or a hub name (owner/name)")


def load_pipeline(model: str, text_encoders: Sequence[str] | None = None) -> SnapGenPipeline:
    """The pipeline called `model` in fp32, on the GPU if there is one; ValueError naming what cannot be loaded.

    text_encoders: names of those to load, by default all; the others are neither read nor downloaded.
    """
    import diffusers
    import transformers

    from snapgen.machine.device import default_device
    from snapgen.pipeline.text_to_image import SnapGenPipeline

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    if model in BUNDLED:
        pipeline = SnapGenPipeline.bundled(model)
        check_text_encoders(text_encoders, {name: getattr(pipeline, name) for name in pipeline.text_encoders})
    elif Path(model).is_dir():
        pipeline = _load_folder(Path(model), text_encoders)
    else:
        try:
            omitted = dict.fromkeys(_omitted(text_encoders))
            folder = SnapGenPipeline.download(model, use_safetensors=True, trust_remote_code=False, **omitted)
        except (OSError, ValueError, RuntimeError) as error:
            reason = "is not a folder here, and the hub does not provide it: check the name and the network"
            raise ValueError(f"'{model}' {reason}") from error
        pipeline = _load_folder(Path(folder), text_encoders)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(default_device())


def load_autoencoder(model: str) -> torch.nn.Module:
    """The autoencoder in the folder `model`, of this package or of diffusers, in fp32, on the GPU if there is one."""
    from snapgen.machine.device import default_device
    from snapgen.pipeline.classes import AUTOENCODERS

    folder = Path(model)
    name = str(read_json(folder / "config.json").get("_class_name"))
    library = "snapgen.models.autoencoder" if name == "SnapGenAutoencoder" else "diffusers"
    if f"{library}.{name}" not in AUTOENCODERS:
        listed = ", ".join(sorted(AUTOENCODERS))
        raise ValueError(f"{folder / 'config.json'} describes a {name[:100]}, expected one of {listed}")
    network: torch.nn.Module = _load_part(folder, library, name)
    return network.to(default_device()).eval()


def load_adapters(pipeline: SnapGenPipeline, folder: Path) -> None:
    """Load the adapters in `folder` into `pipeline`; ValueError if there are none or they are for another network."""
    from snapgen.weights import check_files

    if find_spec("peft") is None:
        raise ValueError("--lora needs peft: pip install 'snapgen[train]'")
    if not (folder / ADAPTERS).is_file():
        raise ValueError(f"--lora {folder}: expected a folder with {ADAPTERS}, as `snapgen train` writes it")
    try:
        check_files(folder)
        pipeline.load_lora_weights(folder, weight_name=ADAPTERS)
    except Exception as error:  # diffusers, peft and safetensors each raise their own types
        raise ValueError(f"--lora {folder} does not fit the model: {one_line(error, 300)}") from error


def _omitted(text_encoders: Sequence[str] | None) -> list[str]:
    """The components that are not loaded if only `text_encoders` are."""
    from snapgen.text.join import TEXT_ENCODERS, tokenizer_of

    names = [name for name in TEXT_ENCODERS if text_encoders is not None and name not in text_encoders]
    return [*names, *map(tokenizer_of, names)]


def _load_folder(folder: Path, text_encoders: Sequence[str] | None = None) -> SnapGenPipeline:
    from snapgen.pipeline.classes import read_own_index
    from snapgen.pipeline.text_to_image import SnapGenPipeline
    from snapgen.text.join import TEXT_ENCODERS, tokenizer_of
    from snapgen.text.load import check_vocabulary

    index = folder / INDEX
    entries = read_own_index(folder)
    present = {part: entry for part, entry in entries.items() if isinstance(entry, list) and entry != [None, None]}
    check_text_encoders(text_encoders, {part: entry[1] for part, entry in present.items() if part in TEXT_ENCODERS})
    omitted = _omitted(text_encoders)
    parts: dict[str, Any] = dict.fromkeys(omitted) | {
        part: _load_part(folder / part, *entry) for part, entry in present.items() if part not in omitted
    }
    reader = next((name for name in TEXT_ENCODERS if parts.get(name) is not None), TEXT_ENCODERS[0])
    if absent := [part for part in ("unet", "vae", reader, tokenizer_of(reader)) if parts.get(part) is None]:
        raise ValueError(f"{index} names no {', '.join(absent)}: a whole model is expected")
    for name in TEXT_ENCODERS:
        if parts.get(name) is not None and parts.get(tokenizer_of(name)) is not None:
            check_vocabulary(parts[name], parts[tokenizer_of(name)], str(folder / tokenizer_of(name)))
    try:
        return SnapGenPipeline.from_pretrained(folder, **parts)
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise ValueError(f"{index} does not fit a {SnapGenPipeline.__name__}: {error}") from error


def _load_part(folder: Path, library: str, class_name: str) -> Any:
    """The network or tokenizer in `folder`, with exactly its own weights; `check_index` knows its class."""
    import torch

    from snapgen.text.load import load_tokenizer
    from snapgen.weights import load_network

    if not folder.is_dir():
        raise ValueError(f"{folder} is missing")
    part_type = getattr(import_module(library), class_name, None)
    if isinstance(part_type, type) and issubclass(part_type, torch.nn.Module):
        return load_network(part_type, str(folder), dtype=torch.float32)
    return load_tokenizer(class_name, str(folder))
