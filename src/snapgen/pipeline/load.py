"""Strictly loads pipelines, autoencoders and adapters by bundled name, folder or hub name.

diffusers and transformers fill missing weights with random numbers and only warn. Whoever asks for a model wants that
model, so here a missing, unexpected or misshapen weight is a one-line error that names the place.
"""

from __future__ import annotations

import json
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snapgen.messages import one_line
from snapgen.pipeline.bundled import BUNDLED
from snapgen.registration import PIPELINES

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


def load_pipeline(model: str) -> SnapGenPipeline:
    """The pipeline called `model` in fp32, on the GPU if there is one; ValueError naming what cannot be loaded."""
    import diffusers
    import transformers

    from snapgen.machine.device import default_device
    from snapgen.pipeline.text_to_image import SnapGenPipeline

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    if model in BUNDLED:
        pipeline = SnapGenPipeline.bundled(model)
    elif Path(model).is_dir():
        pipeline = _load_folder(Path(model))
    else:
        try:
            folder = SnapGenPipeline.download(model)
        except (OSError, ValueError, RuntimeError) as error:
            reason = "is not a folder here, and the hub does not provide it: check the name and the network"
            raise ValueError(f"'{model}' {reason}") from error
        pipeline = _load_folder(Path(folder))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(default_device())


def load_autoencoder(model: str) -> torch.nn.Module:
    """The autoencoder in the folder `model`, of this package or of diffusers, in fp32, on the GPU if there is one."""
    from snapgen.machine.device import default_device

    folder = Path(model)
    try:
        name = str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["_class_name"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{folder / 'config.json'} names no _class_name: an autoencoder's folder is expected"
        ) from None
    library = "snapgen.models.autoencoder" if name == "SnapGenAutoencoder" else "diffusers"
    network: torch.nn.Module = _load_part(folder, library, name)
    if not (hasattr(network, "encode") and hasattr(network, "decode")):
        raise ValueError(f"{folder} holds a {name}: an autoencoder is expected")
    return network.to(default_device()).eval()


def load_adapters(pipeline: SnapGenPipeline, folder: Path) -> None:
    """Load the adapters in `folder` into `pipeline`; ValueError if there are none or they are for another network."""
    if find_spec("peft") is None:
        raise ValueError("--lora needs peft: pip install 'snapgen[train]'")
    if not (folder / ADAPTERS).is_file():
        raise ValueError(f"--lora {folder}: expected a folder with {ADAPTERS}, as `snapgen train` writes it")
    try:
        # Not load_lora_weights, which warns that the text encoder (frozen here) has no adapters.
        state, alphas, metadata = pipeline.lora_state_dict(folder, weight_name=ADAPTERS, return_lora_metadata=True)
        pipeline.load_lora_into_unet(state, alphas, pipeline.unet, metadata=metadata, _pipeline=pipeline)
    except Exception as error:  # diffusers, peft and safetensors each raise their own types
        raise ValueError(f"--lora {folder} does not fit the model: {one_line(error, 300)}") from error


def _load_folder(folder: Path) -> SnapGenPipeline:
    from snapgen.pipeline.text_to_image import SnapGenPipeline

    index = folder / INDEX
    try:
        entries = json.loads(index.read_text(encoding="utf-8"))
        name = entries["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index} is damaged or describes no pipeline: {error!r}") from error
    if name not in PIPELINES:  # they have the same components
        raise ValueError(f"{index} describes a {name}, expected a {SnapGenPipeline.__name__}")
    parts = {
        part: _load_part(folder / part, *entry)
        for part, entry in entries.items()
        if isinstance(entry, list) and entry[0] is not None
    }
    if absent := {"unet", "vae", "text_encoder", "tokenizer"} - set(parts):
        raise ValueError(f"{index} names no {', '.join(sorted(absent))}: a whole model is expected")
    try:
        return SnapGenPipeline.from_pretrained(folder, **parts)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} does not fit a {name}: {error}") from error


def _load_part(folder: Path, library: str, class_name: str) -> Any:
    """The network or tokenizer in `folder`, with exactly its own weights."""
    import torch

    from snapgen.weights import load_network, load_pretrained

    if library not in ("diffusers", "transformers") and not library.startswith("snapgen."):
        raise ValueError(f"{folder} is a {library}.{class_name}, which this package does not load")
    if not folder.is_dir():
        raise ValueError(f"{folder} is missing")
    try:
        part_type = getattr(import_module(library), class_name)
    except AttributeError:
        raise ValueError(f"{folder} is a {library}.{class_name}, which does not exist") from None
    if issubclass(part_type, torch.nn.Module):
        return load_network(part_type, str(folder), dtype=torch.float32)
    return load_pretrained(part_type.from_pretrained, str(folder))
