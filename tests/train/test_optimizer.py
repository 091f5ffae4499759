from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from snapgen.config import TrainSettings
from snapgen.train.optimizer import MuonAdamW, hidden_matrices, make_optimizer

SETTINGS = TrainSettings(steps=1, batch_size=1, learning_rate=0.01, optimizer="muon", weight_decay=0.1)


def make_network() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(4, 32, 1),  # leads in
        nn.Conv2d(32, 48, 1),
        nn.Conv2d(48, 48, 3, padding=1, groups=48),
        nn.Flatten(),
        nn.Linear(192, 40),
    )
    return network.to(memory_format=torch.channels_last)


def step(network: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    inputs = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad(set_to_none=True)
    network(inputs).square().mean().backward()
    optimizer.step()


def test_hidden_matrices_are_muons_and_the_rest_adamws() -> None:
    network = make_network()
    found = hidden_matrices(network)
    assert [id(weight) for weight in found] == [id(network[1].weight), id(network[4].weight)]
    optimizer = make_optimizer(network, SETTINGS)
    step(network, optimizer, 0)
    kinds = {name: sorted(optimizer.state[p]) for name, p in network.named_parameters()}
    adamw = ["exp_avg", "exp_avg_sq", "step"]
    assert {name for name, state in kinds.items() if state == ["momentum_buffer"]} == {"1.weight", "4.weight"}
    assert all(state == adamw for name, state in kinds.items() if name not in ("1.weight", "4.weight"))


def test_updates_are_those_of_torchs_muon_and_adamw() -> None:
    ours, theirs = make_network(), make_network()
    optimizer = make_optimizer(ours, SETTINGS)
    convolution, linear = theirs[1], theirs[4]
    matrix = nn.Parameter(convolution.weight.detach().flatten(1).clone())
    shared = {"lr": 0.01, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    muon = torch.optim.Muon([matrix, linear.weight], **shared)
    others = [p for p in theirs.parameters() if p is not convolution.weight and p is not linear.weight]
    groups = [
        {"params": [p for p in others if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=0.01, betas=SETTINGS.betas)
    for seed in range(3):
        step(ours, optimizer, seed)
        for wrapped in (muon, adamw):
            wrapped.zero_grad()
        theirs(torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(seed))).square().mean().backward()
        matrix.grad = convolution.weight.grad.flatten(1)
        muon.step()
        adamw.step()
        with torch.no_grad():
            convolution.weight.copy_(matrix[..., None, None])
        convolution.weight.grad = None
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, msg=name)


def test_its_state_can_be_moved_to_another() -> None:
    network = make_network()
    optimizer = make_optimizer(network, SETTINGS)
    step(network, optimizer, 0)
    other = copy.deepcopy(network)
    resumed = make_optimizer(other, SETTINGS)
    for one, two in zip(network.parameters(), other.parameters(), strict=True):
        resumed.state[two] = {name: value.clone() for name, value in optimizer.state[one].items()}
    for own, trained in ((network, optimizer), (other, resumed)):
        step(own, trained, 1)
    assert all(torch.equal(one, two) for one, two in zip(network.parameters(), other.parameters(), strict=True))


def test_a_closure_is_refused() -> None:
    optimizer = make_optimizer(make_network(), SETTINGS)
    assert isinstance(optimizer, MuonAdamW)
    with pytest.raises(ValueError, match="no closure"):
        optimizer.step(lambda: 0.0)
