"""Pictures of a list of prompts, drawn by a pipeline and kept in a folder: an interrupted run goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from snapgen.pipeline import SnapGenPipeline
from snapgen.weights import atomic_file

BATCH = 16  # pictures drawn at once: bounds memory, changes no picture


@dataclass(frozen=True)
class Request:
    """One picture to draw."""

    name: str  # of its file, without suffix
    prompt: str
    seed: int


def model_hash(pipeline: SnapGenPipeline) -> str:
    """SHA-256 of all weights of the pipeline's networks and of its settings, however they were loaded."""
    digest = hashlib.sha256()
    for name, part in sorted(pipeline.components.items()):
        if isinstance(part, torch.nn.Module):
            for tensor_name, tensor in sorted(part.state_dict().items()):
                digest.update(f"{name}.{tensor_name}{tuple(tensor.shape)}{tensor.dtype}".encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    kept = {key: value for key, value in pipeline.config.items() if key.startswith("default_") or key == "shift"}
    digest.update(json.dumps(kept, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def fingerprint(values: Any) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def draw_pictures(
    pipeline: SnapGenPipeline,
    requests: Sequence[Request],
    folder: Path,
    identity: dict[str, Any],
    settings: dict[str, Any],
    progress: Callable[[str], None],
) -> list[np.ndarray]:
    """The pictures of `requests`, uint8 H W 3, in their order; each is also `folder`/name.png.

    `identity` says what the pictures depend on beside prompt and seed (plain values). A folder with pictures of
    another identity is refused with a ValueError; of the same, only pictures that are missing are drawn.
    `settings`: further arguments of the pipeline. `progress`: told after every batch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "identity.json"
    if record.exists():
        if json.loads(record.read_text(encoding="utf-8")) != identity:
            raise ValueError(f"{folder} holds pictures of another model or other settings: give another --out")
    else:
        with atomic_file(record) as temporary:
            temporary.write_text(json.dumps(identity, indent=2), encoding="utf-8")
    missing = [request for request in requests if not _holds(folder, request)]
    for start in range(0, len(missing), BATCH):
        batch = missing[start : start + BATCH]
        drawn: Any = pipeline(
            prompt=[request.prompt for request in batch],
            generator=[torch.Generator("cpu").manual_seed(request.seed) for request in batch],
            **settings,
        )
        for request, image in zip(batch, drawn.images, strict=True):
            _save(image, _path(folder, request), request)
        progress(f"pictures: {len(requests) - len(missing) + start + len(batch)} of {len(requests)}")
    return [np.asarray(Image.open(_path(folder, request)).convert("RGB")) for request in requests]


def _path(folder: Path, request: Request) -> Path:
    return folder / f"{request.name}.png"


def _holds(folder: Path, request: Request) -> bool:
    """Whether the picture is there, and is of this prompt and seed."""
    path = _path(folder, request)
    if not path.exists():
        return False
    with Image.open(path) as image:
        return (image.info.get("prompt"), image.info.get("seed")) == (request.prompt, str(request.seed))


def _save(image: Image.Image, path: Path, request: Request) -> None:
    from PIL.PngImagePlugin import PngInfo

    facts = PngInfo()
    facts.add_text("prompt", request.prompt)
    facts.add_text("seed", str(request.seed))
    with atomic_file(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=facts)
