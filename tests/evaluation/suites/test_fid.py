"""The distance on cases that are known exactly, against torchmetrics, and from end to end without any download."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.judges import save_clip
from torchmetrics.image.fid import FrechetInceptionDistance

from snapgen.cli.main import run
from snapgen.evaluation.features import INCEPTION_FILE, FeatureNetwork, inception_sha256
from snapgen.evaluation.suites.fid import Statistics, frechet_distance, read_reference, statistics
from snapgen.models.lpips import Lpips, linear_layers
from snapgen.pictures import to_tensor

MEANS = FeatureNetwork("means", "", lambda picture: picture.reshape(-1, 3).mean(axis=0).astype(np.float64))


def test_the_distance_of_two_gaussians_is_exact() -> None:
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    mu, other = rng.standard_normal((2, 5))
    s, t = np.array([4.0, 1.0, 0.25, 9.0, 0.0]), np.array([1.0, 1.0, 4.0, 0.0, 0.0])
    distance = frechet_distance(Statistics(mu, axes * s @ axes.T), Statistics(other, axes * t @ axes.T))
    assert distance == pytest.approx(((mu - other) ** 2).sum() + ((s**0.5 - t**0.5) ** 2).sum(), rel=1e-12)

    # Covariances that do not commute: of 2 x 2, tr (AB)^(1/2) = (tr AB + 2 det(AB)^(1/2))^(1/2).
    a, b = np.array([[2.0, 0.7], [0.7, 1.0]]), np.array([[0.5, -0.3], [-0.3, 3.0]])
    root = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    distance = frechet_distance(Statistics(np.zeros(2), a), Statistics(np.zeros(2), b))
    assert distance == pytest.approx(np.trace(a) + np.trace(b) - 2 * root, rel=1e-12)

    with pytest.raises(ValueError, match="features of 2 and 5 numbers"):
        frechet_distance(Statistics(np.zeros(2), a), Statistics(mu, axes))


def test_it_agrees_with_torchmetrics() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(0, 200, (12, 8, 8, 3), dtype=np.uint8)
    second = rng.integers(50, 255, (9, 8, 8, 3), dtype=np.uint8)

    class Means(torch.nn.Module):
        num_features = 3

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.double().mean(dim=(2, 3))

    metric = FrechetInceptionDistance(feature=Means()).set_dtype(torch.float64)
    metric.update(torch.from_numpy(first).permute(0, 3, 1, 2), real=True)
    metric.update(torch.from_numpy(second).permute(0, 3, 1, 2), real=False)
    assert frechet_distance(statistics(MEANS, first), statistics(MEANS, second)) == pytest.approx(
        float(metric.compute()), rel=1e-6
    )


def test_published_statistics_are_read_and_others_refused(tmp_path: Path) -> None:
    mu, sigma = np.arange(3.0), np.eye(3)
    np.savez(tmp_path / "good.npz", arr_0=np.zeros((2, 2)), mu=mu, sigma=sigma)
    read, facts = read_reference(tmp_path / "good.npz", MEANS, print)
    assert np.array_equal(read.mu, mu)
    assert np.array_equal(read.sigma, sigma)
    assert len(facts["npz_sha256"]) == 64
    for name, arrays, message in (
        ("pickled", {"mu": np.array([None], dtype=object), "sigma": sigma}, "no .npz with the arrays"),
        ("nameless", {"mean": mu}, "no .npz with the arrays"),
        ("other", {"mu": mu, "sigma": np.eye(2)}, "not finite statistics of one set"),
        ("nan", {"mu": mu * np.nan, "sigma": sigma}, "not finite statistics of one set"),
    ):
        np.savez(tmp_path / f"{name}.npz", **arrays)
        with pytest.raises(ValueError, match=message):
            read_reference(tmp_path / f"{name}.npz", MEANS, print)


def test_folders_of_pictures(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for folder, low in (("dark", 0), ("bright", 120)):
        (tmp_path / folder).mkdir()
        for i in range(4):
            pixels = rng.integers(low, low + 100, (32, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{i}.png")
    dark = str(tmp_path / "dark")

    def score(reference: str, features: str) -> float:
        command = ["evaluate", dark, "--suite", "fid", "--reference", str(tmp_path / reference), "--features", features]
        assert run([*command, "--out", str(tmp_path / "out"), "--json"]) == 0
        return float(json.loads(capfd.readouterr().out)["score"])

    for features in ("scene-classifier", "mini-encoder", str(save_clip(tmp_path / "clip"))):
        assert score("dark", features) == pytest.approx(0, abs=1e-6)
        assert score("bright", features) > 1e-4
    assert (tmp_path / "out" / "fid" / "gallery.html").read_text().count("<figure") == 4

    for arguments, message in (
        ([], "needs --reference"),
        (["--reference", dark], "FID's Inception needs torch-fidelity"),
        (["--reference", dark, "--features", "mini-encoder", "--weights", "x"], "is for --features inception"),
        (["--reference", dark, "--features", "foo"], "--features foo is not known: expected inception, scene-class"),
        (["--reference", dark, "--features", str(tmp_path / "none")], "the hub does not provide it"),
        (["--reference", str(tmp_path / "nowhere")], "does not exist"),
        (["--reference", dark, "--count", "9"], "FID's Inception needs torch-fidelity"),
    ):
        assert run(["evaluate", dark, "--suite", "fid", "--out", str(tmp_path / "no"), *arguments]) == 1
        assert message in capfd.readouterr().err
    assert run(["evaluate", dark, "--suite", "scenes"]) == 1
    assert "dark' is not a model folder" in capfd.readouterr().err


def test_only_the_published_inception_is_let_through(tmp_path: Path) -> None:
    file = tmp_path / INCEPTION_FILE
    with pytest.raises(ValueError, match=f"fetch https://github.com/toshas/torch-fidelity/.* to {file}"):
        inception_sha256(file)
    file.write_bytes(b"another network")
    with pytest.raises(ValueError, match="is not FID's Inception: its SHA-256 is .*, not 6726825d"):
        inception_sha256(file)


def test_a_model_against_the_embedded_world(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", str(tiny_model), "--suite", "fid,psnr", "--count", "3", "--steps", "1", "--seeds", "0,1"]
    assert run([*command, "--out", str(tmp_path), "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    fid, psnr = report["fid"], report["psnr"]
    assert fid["features"] == "scene-classifier"
    assert fid["count"] == 6
    assert fid["score"] == pytest.approx(np.mean(list(fid["by_seed"].values())))
    assert fid["interval"][0] < fid["score"] < fid["interval"][1]
    assert fid["truth"] < fid["score"]  # random weights draw no scenes
    assert psnr["count"] == 3
    pairs = sorted((tmp_path / "psnr" / "pictures").iterdir())
    both = np.asarray(Image.open(pairs[0])).astype(np.float64)
    error = ((both[:, :32] - both[:, 32:]) ** 2).mean()
    lines = json.loads((tmp_path / "psnr" / "report.json").read_text())["pictures"]
    assert lines[0]["score"] == pytest.approx(10 * np.log10(255**2 / error), abs=1e-3)
    assert psnr["lpips"] is None and "lpips_sha256" not in psnr["manifest"]
    assert "LPIPS was skipped: it needs --weights psnr=FILE" in (tmp_path / "psnr" / "report.md").read_text()


def test_lpips_of_an_autoencoder(tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    network = Lpips("alex")
    weights = tmp_path / "alexnet.safetensors"
    features = {name: tensor for name, tensor in network.state_dict().items() if name.startswith("features.")}
    save_file(features, weights)
    command = ["evaluate", str(tiny_model), "--suite", "psnr", "--count", "2", "--out", str(tmp_path / "out")]
    assert run([*command, "--weights", str(weights), "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    network.load_state_dict(linear_layers("alex"), strict=False)
    pairs = [np.asarray(Image.open(file)) for file in sorted((tmp_path / "out" / "psnr" / "pictures").iterdir())]
    found = []
    for picture in to_tensor(pairs):
        given, output = picture[None].chunk(2, dim=-1)
        with torch.no_grad():
            found.append(network(output, given).item())
    assert report["lpips"] == pytest.approx(np.mean(found), rel=1e-4) and report["lpips"] > 0
    assert len(report["manifest"]["lpips_sha256"]) == 64
    assert run([*command, "--weights", str(tmp_path / "nowhere")]) == 1
    assert "the hub does not provide it" in capfd.readouterr().err
