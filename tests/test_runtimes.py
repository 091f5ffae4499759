"""`benchmarks/runtimes.py` and the calls that it times, with the tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import calls
import peers
import pytest
import runtimes
import shared
import torch
from calls import PICTURE, TEXT, Call

from snapgen.export.parts import Part
from snapgen.models.denoiser import Denoiser
from snapgen.runtime.bundle import DECODER, UNET

NETWORKS = (TEXT, UNET, DECODER, PICTURE)
MEASURED = {"seconds": [0.5, 0.25, 1.0], "peak_bytes": 2**30, "weight_bytes": 10**7}


@pytest.fixture
def tiny_peer(monkeypatch: pytest.MonkeyPatch) -> str:
    """A peer of the tests' own: the network of the debug preset's size."""
    from diffusers import SanaTransformer2DModel

    def build() -> SanaTransformer2DModel:
        return SanaTransformer2DModel(
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=4,
            num_cross_attention_heads=2,
            cross_attention_head_dim=4,
            cross_attention_dim=8,
            caption_channels=6,
            sample_size=2,
        )

    inputs = peers.text_input("hidden_states", 32, 32, 5, 6)
    monkeypatch.setitem(peers.PEERS, "Tiny", peers.Peer(build, inputs))
    return "Tiny"


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("runtime", ["eager", "onnx"])
def test_every_network_is_timed_in_torch_and_onnx(
    runtime: str, network: str, tiny_model: Path, tiny_bundle: Path
) -> None:
    call = Call(runtime, str(tiny_model), network, 32, bundle=str(tiny_bundle), repeats=2)
    result = calls.measure(call)
    assert len(result["seconds"]) == 2 and min(result["seconds"]) > 0
    assert result["weight_bytes"] > 1000


def test_weights_take_as_much_in_a_file_of_fp32_as_in_memory(tiny_model: Path, tiny_bundle: Path) -> None:
    memory, file = (
        calls.measure(Call(runtime, str(tiny_model), UNET, 32, bundle=str(tiny_bundle)))["weight_bytes"]
        for runtime in ("eager", "onnx")
    )
    assert memory < file < memory + 500_000  # the graph


def test_optimize_is_called(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snapgen.pipeline.components.gains_by_bfloat16", lambda device: True)
    eager, optimized = (Call(runtime, str(tiny_model), UNET, 32) for runtime in ("eager", "optimize"))
    assert calls.measure(optimized)["weight_bytes"] * 2 == calls.measure(eager)["weight_bytes"]  # bf16


def test_a_peer_is_called_in_torch_as_its_benchmark_calls_it(tiny_peer: str) -> None:
    part = calls.peer_part(tiny_peer, 64)
    assert part(part.inputs)["sample"].shape == (1, 32, 2, 2)
    assert part.axes["encoder_hidden_states"] == {0: "batch", 1: "tokens"}
    assert len(calls.measure(Call("eager", tiny_peer, UNET, 64))["seconds"]) == 1


def test_sizes_of_inputs_come_from_the_call(tiny_bundle: Path) -> None:
    sizes = calls.sizes_of(tiny_bundle, Call("onnx", "", UNET, 64, tokens=7))
    inputs = calls.example_inputs(calls.described(tiny_bundle, "onnx", UNET), sizes)
    assert inputs["sample"].shape[2:] == (sizes["height"], sizes["width"]) == (8, 8)
    assert inputs["encoder_hidden_states"].shape[1] == 7
    assert inputs["encoder_attention_mask"].all()


def test_a_runtime_without_torch_is_measured_without_it(tiny_bundle: Path) -> None:
    call = asdict(Call("onnx", "", PICTURE, 32, bundle=str(tiny_bundle)))
    code = f"import calls, sys; calls.measure(calls.Call(**{call!r})); print('torch' in sys.modules)"
    folder = str(Path(calls.__file__).parent)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=True)
    assert found.stdout.split() == ["False"]


def test_a_page_gets_threads_and_no_other_files(tmp_path: Path) -> None:
    for name in ("inside/unet.onnx", "secret"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    with calls.served({"bundle": tmp_path / "inside"}) as address:
        with urlopen(address) as page:
            assert b"window.measure" in page.read()
            assert page.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        assert urlopen(address + "bundle/unet.onnx").read() == b"inside/unet.onnx"
        for path in ("bundle/../secret", "bundle/secret", "secret"):
            with pytest.raises(HTTPError, match="404"):
                urlopen(address + path)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import os; os.kill(os.getpid(), 9)", "does not fit in memory"),
        ("raise MemoryError", "does not fit in memory"),
        ("raise ValueError('no such size')", "ValueError: no such size"),
        ("raise ValueError('page: broken\\n    at line 3')", "ValueError: page: broken"),
    ],
)
def test_a_process_that_fails_says_why(script: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(script)
    assert shared.in_own_process(str(tmp_path / "script.py")) == {"failure": reason}


def test_a_process_shows_its_progress(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import sys; print('1 of 2', file=sys.stderr); print('x'); print('{\"a\": 1}')")
    lines: list[str] = []
    assert shared.in_own_process(str(tmp_path / "script.py"), notify=lines.append) == {"a": 1}
    assert lines == ["1 of 2"]


def test_rounds_take_the_runtimes_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []

    def measured(script: str, call: str) -> dict[str, Any]:
        order.append(json.loads(call)["runtime"])
        return {"failure": "too large"} if order[-1] == "onnx" else dict(MEASURED)

    monkeypatch.setattr(runtimes, "in_own_process", measured)
    chosen = [runtimes.RUNTIMES[0], runtimes.RUNTIMES[1], runtimes.RUNTIMES[2], runtimes.RUNTIMES[-1]]
    (tmp_path / "mini-onnx-fp32").mkdir()
    rows = runtimes.measure_all([Call("", "mini", UNET, 128)], chosen, tmp_path, None, rounds=2)
    assert order == ["eager", "optimize", "onnx", "eager", "optimize"]
    assert [row.get("failure") for row in rows] == [None, None, "too large", "the web app is not built"]
    assert rows[0]["seconds"] == MEASURED["seconds"] * 2


def test_what_is_called() -> None:
    small = runtimes.miniature("mini", [128, 256])
    assert [(call.network, call.size) for call in small] == [
        (TEXT, 128),
        *((network, size) for size in (128, 256) for network in (UNET, DECODER, PICTURE)),
    ]
    full = runtimes.full_size([512, 1024])
    assert [(call.model, call.network, call.tokens) for call in full if call.size == 512] == [
        ("t2i", UNET, 77),
        ("t2i", UNET, 377),
        ("Sana-0.6B", UNET, 300),
        ("t2i", DECODER, None),
    ]


def test_full_size_networks_run_where_they_can_be_exported_within_minutes(tmp_path: Path) -> None:
    call = runtimes.full_size([512])[0]
    given = {runtime.name: runtimes.fill_in(call, runtime, tmp_path, tmp_path) for runtime in runtimes.RUNTIMES}
    assert given["browser, WASM"] == "not measured at full size"
    onnx = given["ONNX Runtime int8"]
    assert isinstance(onnx, Call) and onnx.bundle == str(tmp_path / "t2i-onnx-int8")


def test_table_and_plot() -> None:
    row = {"model": "mini", "network": UNET, "size": 128, "tokens": None}
    faster = replace(runtimes.RUNTIMES[2])
    report = shared.machine_facts() | {
        "results": [
            row | MEASURED | {"runtime": "torch eager", "kind": "eager"},
            row | MEASURED | {"runtime": faster.name, "kind": "onnx", "seconds": [0.25, 0.1], "peak_bytes": None},
            row | {"runtime": "browser, WASM", "kind": "wasm", "failure": "the web app is not built"},
        ]
    }
    lines = runtimes.table(report).splitlines()
    name = "mini UNet, 128 px"
    assert f"| {name} | torch eager | 500 ms | 250 ms to 1.00 s | 1.00x | 1024 MiB | 10.0 MB |" in lines
    assert f"| {name} | ONNX Runtime fp32 | 175 ms | 100 ms to 250 ms | 0.35x |  | 10.0 MB |" in lines
    assert f"| {name} | browser, WASM | the web app is not built |  |  |  |  |" in lines
    panels = [axes for axes in runtimes.plot(report).axes if axes.axison]
    assert [len(axes.patches) for axes in panels] == [2]


def test_a_peers_bundle_is_made_once_and_called(
    tmp_path: Path, tiny_peer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtimes, "PEER", tiny_peer)
    monkeypatch.setitem(runtimes.SIZES, tiny_peer, (32, 5))
    onnx = runtimes.RUNTIMES[2]
    call = runtimes.fill_in(Call("", tiny_peer, UNET, 128), onnx, tmp_path, None)
    assert isinstance(call, Call) and call.bundle is not None
    runtimes.make_bundle(call, onnx)
    written = (Path(call.bundle) / "unet.onnx").stat().st_mtime
    runtimes.make_bundle(call, onnx)
    assert (Path(call.bundle) / "unet.onnx").stat().st_mtime == written
    assert len(calls.measure(replace(call, repeats=2))["seconds"]) == 2


def test_full_size_networks_are_converted_without_parity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "FULL", "debug")
    monkeypatch.setitem(runtimes.SIZES, "debug", (8, 7))
    int8 = next(runtime for runtime in runtimes.RUNTIMES if runtime.precision == "int8-conv")
    for wanted in (call for call in runtimes.full_size([64]) if call.model == "debug"):
        call = runtimes.fill_in(wanted, int8, tmp_path, None)
        assert isinstance(call, Call)
        runtimes.make_bundle(call, int8)
        assert len(calls.measure(call)["seconds"]) == 1


def test_examples_of_parts_are_cast_to_the_precision_of_the_weights(tiny_model: Path) -> None:
    pipeline = calls.open_pipeline(str(tiny_model))
    unet: Denoiser = pipeline.unet.bfloat16()
    part: Part = calls.pipeline_part(pipeline, Call("eager", str(tiny_model), UNET, 32))
    assert calls.part_call(part)()["velocity"].dtype == unet.dtype == torch.bfloat16  # type: ignore[index]
