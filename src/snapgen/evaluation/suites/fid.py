"""The suite "fid": the Frechet distance between pictures and a reference, in the features of a chosen network.

Protocol. Take the features of every picture (features.py), their mean and covariance, and the distance between the two
normal distributions (Heusel et al. 2017, Eq. 6), all in float64. FID proper is `--features inception`; FID-50K is FID
with `--count 50000` against published statistics, e.g. `--reference VIRTUAL_imagenet256_labeled.npz`. The distance
grows as the number of pictures shrinks: compare at equal counts only.

- What is scored: a model, which generates `--count` pictures for each of `--seeds` and cycles through `--prompts`; or
  an existing folder of pictures.
- Reference: a folder of pictures, or an .npz with `mu` and `sigma` of the same network's features. Without one, the
  embedded world is used: prompts are captions of training-like scenes, and the reference is ground-truth renders of as
  many other scenes. The report then also holds the distance of renders of the captioned scenes ("truth"), and features
  are the scene classifier's by default.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from snapgen.evaluation import EvaluationSettings
from snapgen.evaluation.features import FeatureNetwork, load_features
from snapgen.evaluation.folders import files_hash, picture_files, read_picture
from snapgen.evaluation.generation import Request, generate_pictures, make_manifest, picture_side
from snapgen.evaluation.plots import plot_bars
from snapgen.evaluation.prompts import some_prompts
from snapgen.evaluation.report import score_summary, write_report
from snapgen.evaluation.statistics import interval_of_values
from snapgen.files import sha256
from snapgen.machine.device import default_device, library_versions
from snapgen.messages import Notify, counted
from snapgen.pipeline.text_to_image import SnapGenPipeline
from snapgen.world.prompts import SEED, CaptionedScenes

COUNT = 1000  # pictures, by default

Scored = tuple[list[dict[str, Any]], dict[str, float], dict[str, Any]]
"""Lines of the report, distances by seed ("all" for a folder), manifest."""


@dataclass(frozen=True)
class Statistics:
    """Mean (float64 D) and sample covariance (float64 D D, divided by n - 1) of features."""

    mu: np.ndarray
    sigma: np.ndarray


def evaluate_fid(
    subject: SnapGenPipeline | Path, settings: EvaluationSettings, folder: Path, progress: Notify
) -> dict[str, Any]:
    """Score a model or a folder of pictures, write the report to `folder`, return it."""
    given = settings.reference
    if given is None and (isinstance(subject, Path) or settings.prompts is not None):
        raise ValueError("fid of own pictures or prompts needs --reference: a folder of pictures, or an .npz of them")
    if given is not None and settings.prompts is None and not isinstance(subject, Path):
        raise ValueError("fid of a model with --reference needs --prompts FILE, a text file with one prompt per line")
    device = subject.device if isinstance(subject, SnapGenPipeline) else default_device()
    network = load_features(
        settings.features or ("inception" if given else "scene-classifier"), settings.weights, device
    )
    progress(f"reference: {given or 'renders of scenes'}")
    truth: dict[str, float] = {}
    if given is not None:
        reference, source = read_reference(given, network, progress)
        captions: list[str] = []
    else:
        assert isinstance(subject, SnapGenPipeline)
        world = CaptionedScenes(picture_side(subject, settings), settings.count or COUNT, settings.nouns)
        lots = [counted(world.renders(lot), progress, f"renders of lot {lot}", world.count) for lot in (0, 1)]
        reference, source = statistics(network, lots[1]), {"world": "scenes", "seed": SEED}
        truth = {"truth": frechet_distance(statistics(network, lots[0]), reference)}
        captions = world.captions()

    if isinstance(subject, Path):
        lines, scores, manifest = score_folder(subject, settings, reference, network, progress)
    else:
        prompts = captions if settings.prompts is None else some_prompts(settings.prompts)
        lines, scores, manifest = score_model(subject, settings, prompts, reference, network, folder, progress)
    values, number = list(scores.values()), len(lines) // len(scores)
    interval = interval_of_values(values)
    kind = "FID" if network.name == "inception" else "Frechet distance"
    report: dict[str, Any] = {
        "score": sum(values) / len(values),
        "interval": interval and (max(0.0, interval[0]), interval[1]),  # over seeds; a distance is never below 0
        "by_seed": scores,
        **truth,
        "count": len(lines),
        "features": network.name,
        "manifest": manifest
        | {"features": network.name, "features_sha256": network.sha256, "reference": source, "device": str(device)},
    }
    title = f"fid: {report['score']:.4g}"
    notes = [f"{kind} of {number} pictures by {network.name}; lower is better; compare at equal counts only."]
    if truth:
        notes.append(f"Ground-truth renders of the same prompts get {report['truth']:.4g}.")
    figure = plot_bars(kind, {"score": report["score"]} | truth, {"score": report["interval"]})
    write_report(title, report, score_summary(title, report, ".4g", notes), figure, lines, folder)
    return report


def score_folder(
    subject: Path, settings: EvaluationSettings, reference: Statistics, network: FeatureNetwork, progress: Notify
) -> Scored:
    """Score the pictures in the folder `subject`."""
    files = picture_files(subject, settings.count)
    lines = [{"file": str(file.resolve()), "prompt": file.relative_to(subject).as_posix()} for file in files]
    manifest = {"suite": "fid", "pictures_sha256": files_hash(files), "versions": library_versions()}
    return lines, {"all": distance_to(reference, network, files, progress)}, manifest


def score_model(
    model: SnapGenPipeline,
    settings: EvaluationSettings,
    texts: list[str],
    reference: Statistics,
    network: FeatureNetwork,
    folder: Path,
    progress: Notify,
) -> Scored:
    """For each seed, generate the requested number of pictures, cycling through `texts`, and score them."""
    count = settings.count or COUNT
    prompts = [texts[i % len(texts)] for i in range(count)]
    manifest = make_manifest("fid", model, settings, settings.seeds or (0,), prompts)
    lines: list[dict[str, Any]] = []
    scores = {}
    for seed in manifest["seeds"]:
        # Every picture gets its own noise: with the same noise for all, a lack of variety would not show.
        requests = [Request(f"{seed}-{i:06d}", text, seed * count + i) for i, text in enumerate(prompts)]
        files = generate_pictures(model, requests, folder / "pictures", manifest, progress)
        lines += [
            {"file": file.relative_to(folder).as_posix(), "prompt": request.prompt, "seed": request.seed}
            for file, request in zip(files, requests, strict=True)
        ]
        progress(f"features of the pictures of seed {seed}")
        scores[str(seed)] = distance_to(reference, network, files, progress)
    return lines, scores, manifest


def distance_to(reference: Statistics, network: FeatureNetwork, files: list[Path], progress: Notify) -> float:
    """The distance of the pictures in `files` to `reference`."""
    return frechet_distance(statistics_of(network, files, progress), reference)


def statistics_of(network: FeatureNetwork, files: list[Path], progress: Notify) -> Statistics:
    """The statistics of the pictures in `files`."""
    return statistics(network, counted(map(read_picture, files), progress, "features", len(files)))


def statistics(network: FeatureNetwork, pictures: Iterable[np.ndarray]) -> Statistics:
    """Mean and covariance of the features of `pictures`; ValueError for fewer than two."""
    vectors = [network.extract(picture) for picture in pictures]
    if len(vectors) < 2:
        raise ValueError(f"a distance needs at least two pictures on each side, not {len(vectors)}")
    values = np.stack(vectors)
    return Statistics(values.mean(axis=0), np.cov(values, rowvar=False).reshape(values.shape[1], -1))


def read_reference(path: Path, network: FeatureNetwork, progress: Notify) -> tuple[Statistics, dict[str, Any]]:
    """Statistics of a folder of pictures or an .npz, and their entry in the manifest."""
    if path.suffix.lower() != ".npz":
        files = picture_files(path)
        return statistics_of(network, files, progress), {"pictures": len(files), "sha256": files_hash(files)}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            mu, sigma = np.asarray(arrays["mu"], np.float64), np.asarray(arrays["sigma"], np.float64)
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is no .npz with the arrays mu and sigma: {error}") from None
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)) or not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError(f"{path}: mu {mu.shape} and sigma {sigma.shape} are not finite statistics of one set")
    return Statistics(mu, sigma), {"npz_sha256": sha256(path)}


def frechet_distance(first: Statistics, second: Statistics) -> float:
    """|mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)), in float64.

    The trace of the root is the sum of the singular values of F_1^T F_2, where S = F F^T, so it is always real.
    """
    if first.mu.shape != second.mu.shape:
        raise ValueError(f"features of {len(first.mu)} and {len(second.mu)} numbers: not of the same network")
    common = np.linalg.norm(_factor(first.sigma).T @ _factor(second.sigma), "nuc")
    shift = float(((first.mu - second.mu) ** 2).sum())
    return shift + float(np.trace(first.sigma) + np.trace(second.sigma) - 2 * common)


def _factor(sigma: np.ndarray) -> np.ndarray:
    """F with F F^T = `sigma`, which is symmetric and positive semi-definite."""
    variances, axes = np.linalg.eigh(sigma)
    rounding = variances.max() * len(sigma) * np.finfo(np.float64).eps  # its root would not be small
    return np.asarray(axes * np.sqrt(np.where(variances > rounding, variances, 0)))
