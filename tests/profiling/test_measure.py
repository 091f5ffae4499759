"""What is measured, against what is known; the command with measurements; the peers' published sizes."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from snapgen.cli.main import run
from snapgen.cli.profile import ladder_table
from snapgen.machine.counting import LiveMemory, count
from snapgen.models.presets import RUNGS, UNETS, create_autoencoder, create_unet
from snapgen.profiling.measure import Conditions, measure, random_network

KIB = 1024


def test_live_memory_is_the_peak_of_what_operators_return() -> None:
    x = torch.zeros(KIB // 4)  # there before: does not count
    with LiveMemory() as memory:
        a = x + 1  # 1 KiB
        b = torch.cat([a, a])  # 3 KiB alive
        a.mul_(2)
        view = b[:10]
        del a, b  # the view keeps b
        c = x.repeat(4)  # 2 + 4 KiB alive: the peak
        del view, c
        x + 1
    assert memory.peak == 6 * KIB
    assert memory.alive == 0


def test_measurement_of_a_known_network() -> None:
    conditions = Conditions(repeats=5, warmup=2)
    network = random_network(lambda: nn.Sequential(nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, 256)), conditions)
    calls = []
    x = torch.zeros(64, 256)
    measured = measure(network, lambda: calls.append(network(x).shape), conditions)
    assert len(calls) == conditions.calls == 7
    assert 0 < measured.fastest_s <= measured.median_s <= measured.slowest_s
    assert measured.weight_bytes == 4 * sum(parameter.numel() for parameter in network.parameters())
    assert measured.activation_bytes == 4 * 64 * (1024 + 1024)  # before and after the ReLU
    assert (measured.repeats, measured.warmup, measured.dtype) == (5, 2, "float32")
    assert measured.threads == torch.get_num_threads()


def test_random_networks_are_where_and_what_was_asked() -> None:
    network = random_network(lambda: nn.Conv2d(3, 8, 3), Conditions(dtype=torch.bfloat16))
    assert network.weight.dtype == torch.bfloat16 and not network.training
    assert network.weight.is_contiguous(memory_format=torch.channels_last)
    assert 0 < network.weight.abs().max() <= 0.0201


def test_the_command_measures_presets_and_folders(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["profile", str(tiny_model), "--json", "--dtype", "bfloat16", "--repeats", "2", "--threads", "1"]) == 0
    report = json.loads(capsys.readouterr().out)
    for part in ("latency", "decoder_latency"):
        measured = report[part]
        assert measured["median_s"] > 0 and measured["activation_bytes"] > 0
        assert (measured["dtype"], measured["repeats"], measured["threads"]) == ("bfloat16", 2, 1)
    assert report["latency"]["weight_bytes"] == 2 * report["parameters"]
    assert run(["profile", "debug"]) == 0
    table = capsys.readouterr().out
    assert "| decoder latency |" in table and "median of 3 after 1" in table


@pytest.fixture
def small_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, rung in RUNGS.items():
        small = {**UNETS["debug"], **rung, "cross_attention_dim": 32}
        small |= {key: value[-2:] for key, value in rung.items() if isinstance(value, tuple)}
        monkeypatch.setitem(UNETS, f"rung-{name}", small)


@pytest.mark.slow
def test_the_ladder_is_measured_and_drawn(
    small_ladder: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "ladder.png"
    assert run(["profile", "ladder", "--latent", "8", "--json", "--repeats", "1", "--plot", str(picture)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["latent"] == 8
    assert all(rung["latency"]["median_s"] > 0 for rung in report["rungs"])
    assert picture.read_bytes().startswith(b"\x89PNG")
    lines = ladder_table(report["rungs"]).splitlines()
    assert lines[5].startswith("| (c) |") and "from (b): parameters" in lines[5] and "latency" in lines[5]


@pytest.mark.parametrize(
    "arguments",
    [
        ["mini", "--plot", "a.png"],
        ["ladder", "--plot", "a.doc"],
        ["mini", "--repeats", "0"],
        ["mini", "--dtype", "int8"],
    ],
)
def test_bad_input_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["profile", *arguments]) != 0
    error = capsys.readouterr().err
    assert error.startswith("snapgen: error: ") and error.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has a GPU")
def test_a_gpu_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["profile", "debug", "--device", "cuda"]) != 0
    assert "no CUDA device; use --device cpu" in capsys.readouterr().err


@pytest.fixture(scope="module")
def peers(benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark("peers")


@pytest.mark.parametrize(
    ("name", "millions"),  # as published
    [
        ("SD-1.5", 859.5),
        ("SDXL", 2567.5),
        ("SD3-Medium", 2028.3),
        ("PixArt-Sigma", 610.9),
        ("Sana-0.6B", 591.7),
        ("Sana-1.6B", 1604.5),
        ("SD3 decoder", 49.55),
        ("SDXL decoder", 49.49),
        ("Sana DC-AE decoder", 159.2),
        ("TAESD3 decoder", 1.23),
    ],
)
def test_peers_have_their_published_sizes(peers: ModuleType, name: str, millions: float) -> None:
    with torch.device("meta"):
        network = peers.PEERS[name].build()
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, rel=2e-3)


def test_peers_measure_and_report(peers: ModuleType, tmp_path: Path) -> None:
    tiny = {
        "SnapGen": peers.Peer(lambda: create_unet("debug"), peers.text_input("sample", 16, 8, 7, 32)),
        "SnapGen decoder": peers.Peer(
            lambda: create_autoencoder("debug").decoder, peers.latent_input("latent", 16, 8), True
        ),
    }
    results = []
    for name, peer in tiny.items():
        result = peers.measure_peer(name, 32, Conditions(repeats=1), tiny)
        results.append({"name": name, "size": 32, "decoder": peer.decoder} | result)
    results.append({"name": "SDXL", "size": 32, "decoder": False, "failure": "does not fit in memory"})
    report = {"device": "cpu", "threads": 1, "dtype": "float32", "versions": {"torch": "2"}, "results": results}
    text = peers.table(report)
    assert "| SnapGen | 32 |" in text and "1.00x" in text and "| SDXL | 32 | does not fit in memory |" in text
    peers.plot(report).savefig(tmp_path / "peers.png")
    assert (tmp_path / "peers.png").stat().st_size > 1000


def test_operators_are_told_apart(
    benchmark: Callable[[str], ModuleType], peers: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    operators = benchmark("operators")
    layers = nn.Sequential(
        nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 3), nn.SiLU(), nn.Linear(4, 4)
    )
    monkeypatch.setitem(
        peers.PEERS,
        "layers",
        peers.Peer(lambda: layers, lambda batch, size: {"input": torch.zeros(batch, 8, size, size)}),
    )
    result = operators.profiled("layers", 8, Conditions())
    calls = {kind: row["calls"] for kind, row in result["kinds"].items()}
    for kind in (
        "depthwise convolutions 3x3",
        "convolutions 1x1",
        "convolutions 3x3",
        "activations",
        "matrix products",
    ):
        assert calls[kind] >= 1
    assert (
        operators.kind_of("aten::scaled_dot_product_attention", [[1, 2, 9, 4], [1, 2, 5, 4]]) == "attention to 5 tokens"
    )
    text = operators.summary({"device": "cpu", "threads": 1, "dtype": "float32", "size": 8, "results": [result]})
    assert "| convolutions 3x3 | 0.00 s," in text and "| all | 0.00 s |" in text


@pytest.mark.slow
def test_a_peer_that_fails_says_so(peers: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peers.PEERS, "broken", peers.PEERS["SnapGen"])  # here, but not in the process that measures
    result = peers.outside("broken", 32, [])
    assert "KeyError" in result["failure"]


@pytest.fixture(scope="module")
def search(benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark("decoder_search")


def test_candidates_have_the_papers_size(search: ModuleType) -> None:
    for name in search.CANDIDATES:
        with torch.device("meta"):
            decoder, z = search.build(name), torch.empty(1, 16, 128, 128)
            counts = count(decoder, lambda: decoder(z))  # noqa: B023
        assert counts.parameters == pytest.approx(1.38e6, rel=0.02), name
        assert counts.macs == pytest.approx(224e9, rel=0.03), name


def test_the_preset_is_the_candidate_that_it_is_listed_as(search: ModuleType) -> None:
    preset, listed = search.build(search.CHOSEN), search.assemble(search.CANDIDATES[search.CHOSEN])
    for ours, theirs in zip(preset.parameters(), listed.parameters(), strict=True):
        theirs.data.copy_(ours.data)
    z = torch.randn(1, 16, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(listed(z), preset(z))


def test_the_search_trains_and_scores(search: ModuleType) -> None:
    torch.manual_seed(0)
    data = search.Data(create_autoencoder("debug").eval(), steps=3, batch=2, held_out=2)
    name = "sub-pixel and one ReLU"
    seconds = search.latencies([name], latent=2, repeats=1)
    assert seconds[name] > 0 and seconds[search.PEER] > 0
    untrained = search.score(search.build(name), data)
    rows = list(search.search([name], data, seconds))
    assert rows[0]["psnr"] != untrained["psnr"]
    report = {"device": "cpu", "threads": 1, "steps": 3, "batch": 2, "rows": rows, "peer_latency_s": 1.0}
    assert f"| {name} | 256, 160, 224, 64 | 1, 1, 3, 1 | 2 | 2 | 1 ReLU | subpixel | first |" in search.table(report)


@pytest.fixture(scope="module")
def shapes(benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark("decoder_shapes")


def test_the_size_of_a_shape_is_that_of_its_network(shapes: ModuleType, search: ModuleType) -> None:
    preset = search.CANDIDATES[search.CHOSEN]
    for shape in (preset, *shapes.AGAINST.values(), dataclasses.replace(preset, blocks=(3, 2, 1, 1), expansion=3)):
        with torch.device("meta"):
            decoder, z = search.assemble(shape), torch.empty(1, 16, 128, 128)
            counts = count(decoder, lambda: decoder(z))  # noqa: B023
        assert shapes.size_of(shape) == (counts.parameters, counts.macs)


def test_the_preset_keeps_the_rule_and_what_it_is_compared_with_does_not(
    shapes: ModuleType, search: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset, (against,) = search.CANDIDATES[search.CHOSEN], shapes.AGAINST.values()
    assert shapes.fits(preset) and shapes.fits(against)
    assert shapes.keeps_the_rule(preset) and not shapes.keeps_the_rule(against)
    monkeypatch.setattr(shapes, "MOST_BLOCKS", 2)
    monkeypatch.setattr(shapes, "WIDTHS", range(160, 257, 32))
    monkeypatch.setattr(shapes, "EXPANSIONS", (2,))
    found = list(shapes.rule_shapes())
    assert preset in found and all(shapes.fits(shape) and shapes.keeps_the_rule(shape) for shape in found)
    assert {shape.widths for shape in found} == {(224, 224, 192, 160), (256, 256, 192, 160)}


def test_a_shape_is_trained_from_its_seed(shapes: ModuleType, search: ModuleType) -> None:
    data = search.Data(create_autoencoder("debug").eval(), steps=2, batch=1, held_out=2)
    shape = dataclasses.replace(search.CANDIDATES[search.CHOSEN], widths=(32, 32, 32, 32))
    scores = [shapes.trained(shape, data, 2, seed) for seed in (0, 0, 1)]
    assert scores[0] == scores[1] != scores[2]
