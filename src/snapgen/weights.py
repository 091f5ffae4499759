"""Weights on disk: saves and loads safetensors, loads only complete networks, and records where a model came from."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from snapgen.files import atomic_file, manifest
from snapgen.machine.device import library_versions
from snapgen.messages import one_line

# Weight files of a variant, whole or in shards: name.fp16.safetensors, name.fp16-00001-of-00002.safetensors.
VARIANT = re.compile(r"[^.]+\.([^.-]+)(?:-\d{5}-of-\d{5})?\.safetensors")


def save_file_atomic(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes `tensors` (any device or memory format; no two may share storage) as the safetensors file `path`."""
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    with atomic_file(path) as temporary:
        safetensors.torch.save_file(contiguous, temporary, metadata=metadata)


def load_file(path: Path, device: str = "cpu") -> dict[str, Tensor]:
    """The tensors in the safetensors file `path`; ValueError naming the file if it is truncated or of another kind."""
    try:
        return safetensors.torch.load_file(path, device=device)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {one_line(error)}") from None


def load_pretrained(load: Callable[..., Any], place: str, **settings: Any) -> Any:
    """Calls `load`, a library's `from_pretrained`, on folder or hub name `place`; one-line ValueError if it fails."""
    try:
        return load(place, **settings)
    except Exception as error:  # each library has its own for missing, truncated, offline or other cases
        where = "/".join([place, *filter(None, [settings.get("subfolder")])])
        raise ValueError(f"{where} cannot be loaded: {one_line(error, 300)}") from error


def only_variant(folder: Path) -> str | None:
    """The variant of the weights in `folder`, such as "fp16", if they are all of one; None if they have no variant.

    For example, `diffusion_pytorch_model.fp16.safetensors` without `diffusion_pytorch_model.safetensors`.
    """
    names = [VARIANT.fullmatch(path.name) for path in folder.glob("*.safetensors")]
    variants = {name and name[1] for name in names}
    return variants.pop() if len(variants) == 1 else None


def load_network(kind: Any, place: str, **settings: Any) -> Any:
    """The network of class `kind` in the folder or hub name `place`; one-line ValueError unless it is complete.

    diffusers and transformers fill missing weights with random numbers and only warn. A folder may hold nothing but a
    variant, such as fp16.
    """
    if variant := only_variant(Path(place, settings.get("subfolder") or "")):
        settings = {"variant": variant} | settings
    network, report = load_pretrained(
        kind.from_pretrained, place, output_loading_info=True, ignore_mismatched_sizes=True, **settings
    )
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{place} lacks {len(missing)} tensors of its {type(network).__name__}, such as {missing[0]}")
    for tensor, found, expected in report["mismatched_keys"]:
        raise ValueError(f"{place}: {tensor} has shape {list(found)}, expected {list(expected)}")
    return network


def network_hash(parts: dict[str, torch.nn.Module], settings: dict[str, Any] | None = None) -> str:
    """The SHA-256 of the names, shapes, types and values of all tensors of `parts`, and of plain `settings`."""
    digest = hashlib.sha256()
    for name, part in sorted(parts.items()):
        for tensor_name, tensor in sorted(part.state_dict().items()):
            digest.update(f"{name}.{tensor_name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def provenance(folder: Path, recipe: Mapping[str, Any], step: int) -> dict[str, Any]:
    """Where the model in `folder` came from: its recipe, step, library versions, and the SHA-256 of its files."""
    return {"recipe": dict(recipe), "step": step, "versions": library_versions(), "files": manifest(folder)}
