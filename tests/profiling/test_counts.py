"""Counts against hand calculations and the paper; the command."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from snapgen.cli.main import run
from snapgen.machine.counting import count
from snapgen.profiling.counts import configurations, profile


def test_a_convolution_and_a_linear_layer_are_counted_as_by_hand() -> None:
    with torch.device("meta"):
        network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(8, 8, 3, padding=1, groups=8))
        counts = count(network, lambda: network(torch.empty(1, 3, 10, 10)))
    assert counts.parameters == 3 * 8 * 9 + 8 * 9 + 8
    assert counts.macs == 100 * (3 * 8 * 9 + 8 * 9)
    assert counts.attention_macs == 0


@pytest.mark.slow
def test_attention_products_are_counted_apart() -> None:
    mini, _ = configurations("mini")
    small, large = profile(mini, None, 16), profile(mini, None, 32)
    linear = [counts["macs"] - counts["attention_macs"] for counts in (small, large)]
    assert linear[1] < 4.01 * linear[0]  # in the number of positions
    assert large["attention_macs"] > 5 * small["attention_macs"]  # self-attention is quadratic


@pytest.mark.parametrize(
    ("name", "latent", "key", "paper", "tolerance"),
    [
        ("t2i", None, "parameters", 379e6, 0.01),
        ("imagenet", None, "parameters", 372e6, 0.01),
        ("imagenet", 32, "macs", 38e9, 0.03),
        ("decoder", 128, "decoder_parameters", 1.38e6, 0.02),
        ("decoder", 128, "decoder_macs", 224e9, 0.03),
    ],
)
def test_the_papers_numbers(
    name: str, latent: int | None, key: str, paper: float, tolerance: float, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["profile", name, "--no-latency", "--json", *(["--latent", str(latent)] if latent else [])]) == 0
    assert json.loads(capsys.readouterr().out)[key] == pytest.approx(paper, rel=tolerance)


def test_a_model_folder_is_counted_from_its_configurations(
    tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["profile", str(tiny_model), "--no-latency", "--json"]) == 0
    of_folder = json.loads(capsys.readouterr().out)
    assert run(["profile", "debug", "--no-latency", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == of_folder | {"model": "debug"}


def test_other_networks_are_not_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part, name in (("unet", "SnapGenUNet"), ("vae", "AutoencoderTiny")):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps({"_class_name": name}))
    (tmp_path / "model_index.json").write_text("{}")
    assert run(["profile", str(tmp_path)]) == 1
    expected = f"{tmp_path}/vae/config.json describes a AutoencoderTiny: only a SnapGenAutoencoder is counted"
    assert capsys.readouterr().err == f"snapgen: error: {expected}\n"


@pytest.mark.slow
def test_the_ladder_lists_every_rung(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["profile", "ladder", "--no-latency", "--json"]) == 0
    rungs = json.loads(capsys.readouterr().out)["rungs"]
    assert [rung["name"] for rung in rungs] == ["a", "b", "c0", "c", "d", "e1", "e", "f"]
    assert set(rungs[0]) == {"name", "parameters", "macs_32", "macs_128"}


@pytest.mark.parametrize("arguments", [["nonsense"], ["t2i", "--latent", "0"], ["ladder", "--latent", "2"]])
def test_bad_input_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["profile", *arguments]) != 0
    error = capsys.readouterr().err
    assert error.startswith("snapgen: error: ") and error.count("\n") == 1
