"""Weights on disk: damaged files, provenance."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest
import torch

from snapgen.files import sha256
from snapgen.weights import (
    check_healthy,
    load_file,
    only_variant,
    parameters_at_most,
    provenance,
    save_file_atomic,
)


def test_tensors_come_back(tmp_path: Path) -> None:
    kernel = torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last)
    path = tmp_path / "new" / "model.safetensors"
    save_file_atomic({"kernel": kernel, "step": torch.tensor(3)}, path, metadata={"format": "pt"})
    loaded = load_file(path)
    assert torch.equal(loaded["kernel"], kernel)
    assert loaded["step"] == 3
    assert os.listdir(path.parent) == ["model.safetensors"]


@pytest.mark.parametrize("content", [b"", b"not weights", None])
def test_damaged_weights_are_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.safetensors"
    save_file_atomic({"a": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:-1] if content is None else content)
    with pytest.raises(ValueError, match=r"model.safetensors is damaged or no safetensors file") as error:
        load_file(path)
    assert "\n" not in str(error.value)


def test_missing_weights_are_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors"):
        load_file(tmp_path / "absent.safetensors")


def test_provenance_names_every_file(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{}")
    origin = provenance(tmp_path, {"seed": 1}, step=7)
    assert (origin["recipe"], origin["step"]) == ({"seed": 1}, 7)
    assert origin["files"] == {"unet/config.json": sha256(tmp_path / "unet" / "config.json")}
    assert {"python", "snapgen", "torch", "diffusers"} <= origin["versions"].keys()


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(OSError) as error:
            save_file_atomic({"a": torch.ones(1000)}, tmp_path / "model.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert (error.value.errno, error.value.filename) == (errno.EFBIG, str(tmp_path / "model.safetensors"))
    assert list(tmp_path.iterdir()) == []


def test_a_variant_is_named_if_it_is_the_only_one(tmp_path: Path) -> None:
    found = {}
    for name, files in {
        "plain": ["model.safetensors"],
        "shards": ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        "fp16": ["diffusion_pytorch_model.fp16.safetensors", "config.json"],
        "fp16 shards": ["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"],
        "both": ["model.safetensors", "model.fp16.safetensors"],
        "two": ["model.bf16.safetensors", "model.fp16.safetensors"],
        "none": ["config.json"],
    }.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).touch()
        found[name] = only_variant(tmp_path / name)
    assert {name for name, variant in found.items() if variant} == {"fp16", "fp16 shards"}
    assert found["fp16"] == found["fp16 shards"] == "fp16" and only_variant(tmp_path / "missing") is None


def test_healthy_weights_are_finite_floats() -> None:
    whole = {"a": torch.ones(3, 4), "b": torch.empty(0), "c": torch.tensor(-1e15, dtype=torch.float64)}
    whole |= {"half": torch.full((9,), 65504.0, dtype=torch.float16), "brain": torch.ones(2, dtype=torch.bfloat16)}
    check_healthy(whole, "model")
    check_healthy({"small": torch.ones(4).to(torch.float8_e4m3fn)}, "model")
    for value, message in (
        (torch.nan, "nan: finite weights are expected"),
        (torch.inf, "inf: finite weights are expected"),
        (-torch.inf, "-inf: finite weights are expected"),
        (-1e30, r"-1e\+30: finite weights are expected"),
    ):
        for dtype in (torch.float32, torch.float64):
            tensor = torch.zeros(5, 7, dtype=dtype)
            tensor[3, 6] = value
            with pytest.raises(ValueError, match=f"^model: b holds {message}$"):
                check_healthy({"a": torch.ones(2), "b": tensor}, "model")
    for dtype in (torch.int64, torch.bool, torch.complex64):
        with pytest.raises(ValueError, match=f"^model: a holds {dtype}, floating-point numbers are expected$"):
            check_healthy({"a": torch.ones(2, dtype=dtype)}, "model")


def test_a_network_is_not_built_beyond_its_weights() -> None:
    """Not even its memory is touched: 2^30 parameters would take 4 GB."""
    built = []
    with parameters_at_most(1000, "model"), pytest.raises(ValueError, match="far more than the 1000 numbers"):
        while True:
            built.append(torch.nn.Linear(2**15, 2**15))
    assert len(built) == 0
    with parameters_at_most(2**20, "model"):
        torch.nn.Linear(1024, 1024)
    assert torch.nn.Linear(2**12, 2**12).weight.numel() == 2**24  # afterwards anything goes
