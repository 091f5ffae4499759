"""Weights on disk: atomic writes, damaged files, provenance."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from snapgen.files import atomic_file, atomic_folder, remove_leftovers, sha256
from snapgen.weights import load_file, provenance, save_file_atomic


def write_half(path: Path) -> None:
    """A write of the file `path` that fails half-way."""
    with atomic_file(path) as temporary:
        assert temporary.suffix == path.suffix  # image writers choose the format by it
        temporary.write_text("half")
        raise RuntimeError("half-way")


def fill_half(folder: Path) -> None:
    """A write of `folder` that fails half-way."""
    with atomic_folder(folder) as temporary:
        (temporary / "third").write_text("half")
        raise RuntimeError("half-way")


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


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "curve.png"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="half-way"):
        write_half(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["curve.png"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for text in ("first", "second"):
        with atomic_folder(folder) as temporary:
            (temporary / text).write_text(text)
    assert os.listdir(folder) == ["second"]
    with pytest.raises(RuntimeError, match="half-way"):
        fill_half(folder)
    assert os.listdir(folder) == ["second"]
    assert os.listdir(tmp_path) == ["model"]


def test_leftovers_of_a_kill_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".tmp-1-step_00000005").mkdir()
    (tmp_path / ".tmp-1-recipe.yaml").write_text("half")
    (tmp_path / "recipe.yaml").write_text("whole")
    os.utime(tmp_path / ".tmp-1-recipe.yaml", (0, 0))
    remove_leftovers(tmp_path, 3600)
    assert sorted(os.listdir(tmp_path)) == [".tmp-1-step_00000005", "recipe.yaml"]
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["recipe.yaml"]


def test_provenance_names_every_file(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{}")
    origin = provenance(tmp_path, {"seed": 1}, step=7)
    assert (origin["recipe"], origin["step"]) == ({"seed": 1}, 7)
    assert origin["files"] == {"unet/config.json": sha256(tmp_path / "unet" / "config.json")}
    assert {"python", "snapgen", "torch", "diffusers"} <= origin["versions"].keys()
