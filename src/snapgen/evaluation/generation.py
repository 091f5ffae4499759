"""Generates the pictures that a suite scores and keeps them in a folder, so that an interrupted run can continue."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any

import numpy as np
import torch
from PIL import Image

from snapgen.evaluation import EvaluationSettings
from snapgen.files import atomic_file, fingerprint, read_json
from snapgen.machine.device import library_versions
from snapgen.messages import Counter, Notify, one_line
from snapgen.pictures import save_png, to_tensor, to_uint8
from snapgen.pipeline.text_to_image import SnapGenPipeline
from snapgen.weights import network_hash

BATCH = 16  # pictures generated at once: bounds memory, changes no picture
NAMED = 5  # failed pictures that an error message names; failed.json has all


@dataclass(frozen=True)
class Request:
    """One picture to generate."""

    name: str  # path of its file in the folder, without suffix
    prompt: str
    seed: int


def model_hash(pipeline: SnapGenPipeline) -> str:
    """SHA-256 of the weights and settings of the pipeline, however it was loaded."""
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    kept = {key: value for key, value in pipeline.config.items() if key.startswith("default_") or key == "shift"}
    return network_hash(parts, kept)


def make_manifest(
    suite: str, pipeline: SnapGenPipeline, settings: EvaluationSettings, seeds: Sequence[int], prompts: Any
) -> dict[str, Any]:
    """Everything that a score of generated pictures depends on; `prompts`: what was asked for, as plain values."""
    steps, guidance, interval = settings.steps, settings.guidance, settings.guidance_interval
    manifest = {
        "suite": suite,
        "model_sha256": model_hash(pipeline),
        "prompts_sha256": fingerprint(prompts),
        "seeds": list(seeds),
        "steps": pipeline.config.default_num_inference_steps if steps is None else steps,
        "guidance": pipeline.config.default_guidance_scale if guidance is None else guidance,
        "side": picture_side(pipeline, settings),
        "device": str(pipeline.device),
        "versions": library_versions(),
    }
    return manifest if interval is None else manifest | {"guidance_interval": list(interval)}


def identity_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """The part of a `manifest` that, with prompt and seed, determines a picture."""
    names = ("model_sha256", "steps", "guidance", "guidance_interval", "side")
    return {name: manifest[name] for name in names if name in manifest}


def picture_side(pipeline: SnapGenPipeline, settings: EvaluationSettings) -> int:
    """Side of the generated pictures, px."""
    return settings.size or pipeline.unet.config.sample_size * pipeline.vae_scale_factor


def generate_pictures(
    pipeline: SnapGenPipeline,
    requests: Sequence[Request],
    folder: Path,
    manifest: dict[str, Any],
    progress: Notify,
    more: dict[str, Any] | None = None,
) -> list[Path]:
    """Generate `requests` with the `manifest`'s settings on all GPUs; returns the files `folder`/name.png in order.

    Only missing pictures are generated. ValueError if the folder holds pictures of another model, other settings or
    another `more` (further plain values that the pictures depend on). `progress` gets a line now and then. Pictures
    that fail are listed in failed.json, and a ValueError says that there is no score.
    """
    identity = identity_of(manifest) | (more or {})
    record, failed = folder / "identity.json", folder / "failed.json"
    failed.unlink(missing_ok=True)
    if record.exists():
        if read_json(record) != identity:
            raise ValueError(f"{folder} holds pictures of another model or other settings: give another --out")
    else:
        _write_json(identity, record)
    missing = [request for request in requests if not _holds(folder, request)]
    batches = [missing[start : start + BATCH] for start in range(0, len(missing), BATCH)]
    workers = replicas(pipeline, len(batches))
    counter = Counter(progress, "pictures: generating", len(batches) * manifest["steps"], f"steps of {BATCH}")
    stopping = Event()

    def advance() -> None:
        if stopping.is_set():
            raise CancelledError
        counter.advance()

    free: SimpleQueue[SnapGenPipeline] = SimpleQueue()
    for worker in workers:
        free.put(worker)

    def generate(batch: Sequence[Request]) -> list[dict[str, Any]]:
        worker = free.get()
        try:
            return _generate_batch(worker, batch, folder, manifest, advance)
        finally:
            free.put(worker)

    failures: list[dict[str, Any]] = []
    progress(f"pictures: {len(missing)} to generate, {len(requests) - len(missing)} are there")
    with ThreadPoolExecutor(len(workers)) as pool:
        try:
            for failed_here in pool.map(generate, batches):
                failures += failed_here
        except BaseException:  # Ctrl-C too: do not wait for more than a step
            stopping.set()
            raise
    progress(f"pictures: {len(requests) - len(failures)} of {len(requests)}")
    if failures:
        _write_json(failures, failed)
        named = "; ".join(f"'{f['prompt']}' (seed {f['seed']}): {f['reason']}" for f in failures[:NAMED])
        raise ValueError(f"no score: {len(failures)} of {len(requests)} pictures failed, see {failed}; {named}")
    return [_path(folder, request) for request in requests]


def replicas(pipeline: SnapGenPipeline, most: int) -> list[SnapGenPipeline]:
    """`pipeline` and, if it is on a GPU, copies of it on the other GPUs: at most `most` in all, at least one."""
    if pipeline.device.type != "cuda":
        return [pipeline]
    own = torch.cuda.current_device() if pipeline.device.index is None else pipeline.device.index
    others = [torch.device("cuda", index) for index in range(torch.cuda.device_count()) if index != own]
    return [pipeline, *(deepcopy(pipeline).to(device) for device in others[: max(0, most - 1)])]


def _generate_batch(
    pipeline: SnapGenPipeline,
    batch: Sequence[Request],
    folder: Path,
    manifest: dict[str, Any],
    advance: Callable[[], None],
) -> list[dict[str, Any]]:
    """Generate and save `batch`; returns the failures with reasons. A batch that fails is retried one by one.

    `advance` is called after every step.
    """

    def on_step(pipeline: SnapGenPipeline, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        advance()
        return tensors

    try:
        drawn: Any = pipeline(
            prompt=[request.prompt for request in batch],
            generator=[torch.Generator("cpu").manual_seed(request.seed) for request in batch],
            num_inference_steps=manifest["steps"],
            guidance_scale=manifest["guidance"],
            guidance_interval=tuple(manifest.get("guidance_interval", (0.0, 1.0))),
            width=manifest["side"],
            height=manifest["side"],
            output_type="np",
            callback_on_step_end=on_step,
        )
    except RuntimeError as error:  # PyTorch's, such as out of memory
        if len(batch) > 1:
            return [
                failure
                for request in batch
                for failure in _generate_batch(pipeline, [request], folder, manifest, advance)
            ]
        return [{"prompt": batch[0].prompt, "seed": batch[0].seed, "reason": one_line(error, 200)}]
    failures = []
    for request, picture in zip(batch, drawn.images, strict=True):
        if np.isfinite(picture).all():
            image = pipeline.image_processor.numpy_to_pil(picture)[0]
            save_png(image, _path(folder, request), {"prompt": request.prompt, "seed": str(request.seed)})
        else:
            failures.append({"prompt": request.prompt, "seed": request.seed, "reason": "the picture is not finite"})
    return failures


def _write_json(values: Any, path: Path) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2), encoding="utf-8")


def _path(folder: Path, request: Request) -> Path:
    return folder / f"{request.name}.png"


def _holds(folder: Path, request: Request) -> bool:
    """Whether the picture exists, with this prompt and seed."""
    path = _path(folder, request)
    if not path.exists():
        return False
    with Image.open(path) as image:
        return (image.info.get("prompt"), image.info.get("seed")) == (request.prompt, str(request.seed))


@torch.no_grad()
def reconstruct(autoencoder: Any, pictures: Sequence[np.ndarray], batch: int = 16) -> list[np.ndarray]:
    """`pictures` (uint8 H W 3, all of one size), encoded and decoded by the autoencoder."""
    result: list[np.ndarray] = []
    for start in range(0, len(pictures), batch):
        inputs = to_tensor(list(pictures[start : start + batch])).to(autoencoder.device, autoencoder.dtype)
        result += to_uint8(autoencoder(inputs, return_dict=False)[0])
    return result
