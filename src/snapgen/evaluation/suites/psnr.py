"""The suite "psnr": how well an autoencoder reconstructs pictures (Tab. 2).

Protocol. Every picture is resized (Lanczos) so that its shorter side is `--size`, and cropped to the middle square;
without `--size` it is only cropped, to sides that are multiples of 8. It is encoded (mode of the posterior, no noise),
decoded, rounded to 8 bits and compared with the input: PSNR over all values; SSIM as in torchmetrics (Gaussian window
of 11, sigma 1.5); LPIPS on AlexNet (version 0.1) if `--weights` names AlexNet's weights, else null, and the report says
so. Scores are means over pictures. Table 2 uses COCO val2017: `--reference val2017`.

Without `--reference` the pictures are ground-truth renders of the embedded world's held-out scenes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from snapgen.evaluation import EvaluationSettings
from snapgen.evaluation.folders import files_hash, picture_files, read_picture
from snapgen.evaluation.generation import picture_side, reconstruct
from snapgen.evaluation.plots import plot_spread
from snapgen.evaluation.report import score_summary, write_report
from snapgen.evaluation.statistics import interval_of_values
from snapgen.machine.device import library_versions
from snapgen.messages import Notify, counted
from snapgen.models.lpips import Lpips, load_lpips
from snapgen.pictures import save_png
from snapgen.pipeline.text_to_image import SnapGenPipeline
from snapgen.weights import network_hash
from snapgen.world.prompts import renderer, scene_prompts

SCENES = 17  # per category, if there is no reference
FACTOR = 8  # px; sides are multiples of it
NO_LPIPS = (
    "LPIPS was skipped: it needs --weights psnr=FILE, AlexNet's weights (docs/evaluation.md says how to get them)."
)


def evaluate_psnr(
    subject: SnapGenPipeline | torch.nn.Module,
    settings: EvaluationSettings,
    folder: Path,
    progress: Notify,
) -> dict[str, Any]:
    """Score an autoencoder, or a model's; write the report to `folder`, return it."""
    autoencoder: Any = subject.vae if isinstance(subject, SnapGenPipeline) else subject
    side = picture_side(subject, settings) if isinstance(subject, SnapGenPipeline) else settings.size or 128
    lpips = None if settings.weights is None else load_lpips("alex", settings.weights)
    lines: list[dict[str, Any]] = []
    measured: list[dict[str, float]] = []
    total = settings.count or (6 * SCENES if settings.reference is None else len(picture_files(settings.reference)))
    progress(f"reconstructing {total} pictures")
    for name, picture in counted(pictures(settings, side), progress, "reconstructing", total):
        (output,) = reconstruct(autoencoder, [picture])
        measured.append(compare(output, picture, lpips))
        file = folder / "pictures" / f"{len(lines):06d}.png"
        save_png(Image.fromarray(np.hstack([picture, output])), file)
        lines.append(
            {"file": file.relative_to(folder).as_posix(), "prompt": name, "score": round(measured[-1]["psnr"], 4)}
        )
    means = {name: float(np.mean([one[name] for one in measured])) for name in measured[0]}
    psnrs = [one["psnr"] for one in measured]
    report: dict[str, Any] = {
        "score": means["psnr"],
        "interval": interval_of_values(psnrs),
        "psnr": means["psnr"],
        "ssim": means["ssim"],
        "lpips": means.get("lpips"),
        "count": len(lines),
        "manifest": {
            "suite": "psnr",
            "model_sha256": network_hash({"autoencoder": autoencoder}),
            "size": settings.size,
            "reference": "scenes" if settings.reference is None else files_hash(picture_files(settings.reference)),
            "device": str(autoencoder.device),
            "versions": library_versions(),
            **({"lpips_sha256": network_hash({"alexnet": lpips})} if lpips else {}),
        },
    }
    title = f"psnr: {means['psnr']:.2f} dB"
    notes = [f"SSIM {means['ssim']:.4f}. " + (f"LPIPS {means['lpips']:.4f}." if lpips else NO_LPIPS)]
    figure = plot_spread("PSNR, dB", psnrs, means["psnr"])
    write_report(title, report, score_summary(title, report, ".2f", notes), figure, lines, folder)
    return report


def pictures(settings: EvaluationSettings, side: int) -> Iterator[tuple[str, np.ndarray]]:
    """Names and pictures (uint8 H W 3) to reconstruct."""
    if settings.reference is None:
        prompts = scene_prompts("heldout", SCENES, None)
        if settings.count is not None:
            prompts = scene_prompts("heldout", -(-settings.count // 6), None)[: settings.count]
        draw = renderer(side)
        yield from ((prompt.prompt, draw.render(prompt.scene)) for prompt in prompts)
        return
    for file in picture_files(settings.reference, settings.count):
        yield file.name, fit(read_picture(file), settings.size)


def fit(picture: np.ndarray, size: int | None) -> np.ndarray:
    """The middle of `picture` (uint8 H W 3): a square of `size` px, or sides that are multiples of `FACTOR`."""
    image = Image.fromarray(picture)
    if size is not None:
        scale = size / min(image.size)
        width, height = (max(size, round(scale * length)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
        target = size, size
    else:
        target = image.width // FACTOR * FACTOR, image.height // FACTOR * FACTOR
        if not all(target):
            raise ValueError(f"a picture of {image.width}x{image.height} px is too small: at least {FACTOR} a side")
    left, top = (image.width - target[0]) // 2, (image.height - target[1]) // 2
    return np.asarray(image.crop((left, top, left + target[0], top + target[1])))


def compare(output: np.ndarray, picture: np.ndarray, lpips: Lpips | None) -> dict[str, float]:
    """PSNR in dB, SSIM and, if `lpips` is given, LPIPS of two pictures uint8 H W 3."""
    seen, given = (torch.from_numpy(p.copy()).permute(2, 0, 1)[None].float() for p in (output, picture))
    values = {
        "psnr": float(peak_signal_noise_ratio(seen, given, data_range=255.0)),
        "ssim": float(cast(torch.Tensor, structural_similarity_index_measure(seen, given, data_range=255.0))),
    }
    return values | ({"lpips": float(lpips(seen / 127.5 - 1, given / 127.5 - 1))} if lpips else {})
