"""Checkpoints, moving average and optimiser groups, on tiny real networks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.regression import make_recipe

from snapgen.train.guard import Guard
from snapgen.train.optimizer import make_optimizer
from snapgen.train.state import (
    Checkpoint,
    TrainState,
    checkpoint_folders,
    make_ema,
    newest_checkpoint,
    save_checkpoint,
)

SETTINGS = make_recipe({"ema_decay": 0.9, "weight_decay": 0.25}).train


class Tied(torch.nn.Module):
    """A tied weight, a frozen one, a kernel in channels_last, a buffer that is saved and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(6, 4)
        self.head = torch.nn.Linear(4, 6)
        self.head.weight = self.embedding.weight
        self.conv = torch.nn.Conv2d(4, 4, 3, padding=1).to(memory_format=torch.channels_last)
        self.norm = torch.nn.BatchNorm2d(4)
        self.frozen = torch.nn.Parameter(torch.ones(4), requires_grad=False)
        self.register_buffer("positions", torch.arange(4), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(tokens) * self.frozen  # B N D
        hidden = self.norm(self.conv(hidden.mT[..., None]))  # B D N 1
        return self.head(hidden[..., 0].mT)  # B N V


def make_state(seed: int) -> TrainState:
    torch.manual_seed(seed)
    model = Tied()
    return TrainState(model, make_optimizer(model, SETTINGS), make_ema(model, SETTINGS), Guard(SETTINGS))


def take_steps(state: TrainState, first: int, last: int) -> None:
    for step in range(first, last):
        torch.manual_seed(step)
        tokens = torch.randint(6, (3, 5))
        state.optimizer.zero_grad()
        torch.nn.functional.cross_entropy(state.model(tokens).mT, tokens).backward()
        state.optimizer.step()
        state.average()
        state.guard.accept(1.0 + step)


def saved(run: Path, state: TrainState, step: int, keep: int = 9) -> Checkpoint:
    return Checkpoint(save_checkpoint(run, state, step, {"seed": 1}, keep), step, {"seed": 1}, state.guard.state())


def test_a_checkpoint_restores_everything(tmp_path: Path) -> None:
    whole, parts, fresh = make_state(0), make_state(0), make_state(1)
    take_steps(whole, 0, 8)
    take_steps(parts, 0, 5)
    fresh.load(saved(tmp_path, parts, 5))
    take_steps(fresh, 5, 8)
    for file, tensors in whole.tensors().items():
        restored = fresh.tensors()[file]
        assert tensors.keys() == restored.keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, restored[name]), (file, name)
            assert tensor.stride() == restored[name].stride(), (file, name)
    names = whole.tensors()["model"].keys()
    assert "norm.running_mean" in names
    assert "positions" not in names
    assert ("embedding.weight" in names) != ("head.weight" in names)


def test_ema_follows_its_formula_in_float64() -> None:
    state = make_state(0)
    expected = {name: value.double() for name, value in state.model.named_parameters()}
    for step in range(1, 31):
        take_steps(state, step, step + 1)
        decay = min(0.9, 1 - step**-0.75)  # 0 at the first step
        for name, value in state.model.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * value.detach().double()
    assert decay == 0.9
    for name, value in state.tensors()["ema"].items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_averaged_lends_the_weights_and_takes_them_back() -> None:
    state = make_state(0)
    take_steps(state, 0, 5)
    own = [value.clone() for value in state.model.parameters()]
    with state.averaged() as model:
        assert not model.training
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), state.ema.shadow_params, strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(model.parameters(), own, strict=True) if a.requires_grad)
    assert state.model.training
    assert all(torch.equal(a, b) for a, b in zip(state.model.parameters(), own, strict=True))


def test_only_matrices_and_kernels_decay() -> None:
    state = make_state(0)
    names = {id(value): name for name, value in state.model.named_parameters()}
    decaying, others = state.optimizer.param_groups
    assert {names[id(p)] for p in decaying["params"]} == {"embedding.weight", "conv.weight"}
    assert {names[id(p)] for p in others["params"]} == {"head.bias", "conv.bias", "norm.weight", "norm.bias"}
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.25, 0.0)


def test_the_newest_complete_checkpoints_stay(tmp_path: Path) -> None:
    state = make_state(0)
    for step in range(1, 5):
        saved(tmp_path, state, step, keep=2)
    assert [folder.name for folder in checkpoint_folders(tmp_path)] == ["step_00000003", "step_00000004"]
    saved(tmp_path, state, 2, keep=1)  # after a resume that skipped the damaged 3 and 4
    assert checkpoint_folders(tmp_path)[0].name == "step_00000002"


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "no state", "bad state", "empty folder"])
def test_damaged_checkpoints_are_named_and_skipped(tmp_path: Path, damage: str) -> None:
    state = make_state(0)
    take_steps(state, 0, 1)
    for step in (1, 2):
        saved(tmp_path, state, step)
    folder = tmp_path / "checkpoints" / "step_00000002"
    file, content = folder / "model.safetensors", (folder / "model.safetensors").read_bytes()
    if damage == "truncate":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "remove":
        file.unlink()
    elif damage == "no state":
        (folder / "state.json").unlink()
    elif damage == "bad state":
        (folder / "state.json").write_text(json.dumps([1]))
    else:
        for path in folder.iterdir():
            path.unlink()
    warnings: list[str] = []
    found = newest_checkpoint(tmp_path, warnings.append)
    assert found is not None
    assert (found.step, found.recipe) == (1, {"seed": 1})
    assert len(warnings) == 1
    assert str(folder) in warnings[0]


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    state = make_state(0)
    checkpoint = saved(tmp_path, state, 1)
    other = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"model.safetensors does not fit this model: .* first is"):
        TrainState(other, make_optimizer(other, SETTINGS), make_ema(other, SETTINGS), Guard(SETTINGS)).load(checkpoint)


@pytest.mark.parametrize(
    "changes",
    [
        {"step": -1},
        {"step": "4"},
        {"files": []},
        {"files": {"model.safetensors": None}},
        {"recipe": 3},
        {"guard": []},
        {"guard": {"average": "high"}},
    ],
)
def test_a_state_of_another_form_is_damaged(changes: dict[str, object], tmp_path: Path) -> None:
    warnings: list[str] = []
    file = saved(tmp_path, make_state(0), 3).folder / "state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    assert newest_checkpoint(tmp_path, warnings.append) is None
    for content in ("[" * 100_000, "[]", "\0"):
        file.write_text(content)
        assert newest_checkpoint(tmp_path, warnings.append) is None
    assert all("(state.json) and is skipped" in warning for warning in warnings) and len(warnings) == 4
