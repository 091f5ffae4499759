"""What a plan says, against hand calculations and against a measured training step."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from snapgen.cli.main import run
from snapgen.config import RecipeError, parse_recipe, read_recipe
from snapgen.models.presets import create_unet
from snapgen.profiling.counts import count_unet
from snapgen.profiling.measure import LiveMemory
from snapgen.profiling.plan import GPUS, activation_bytes, duration, plan
from snapgen.train.stages import load_stage
from snapgen.train.state import make_ema, make_optimizer

RECIPES = Path(__file__).parents[2] / "recipes"


def recipe(name: str, *overrides: str) -> Any:
    mapping = read_recipe(RECIPES / name, list(overrides))
    return parse_recipe(load_stage(mapping["stage"]).recipe_type, mapping, name)


def test_hours_follow_from_macs() -> None:
    settings = ["train.steps=1000", "train.batch_size=64", "train.gradient_accumulation=2"]
    made = plan(recipe("mini/flow.yaml", *settings), 4, "h100", 0.5)
    config = dict(create_unet("mini").config)
    macs = count_unet({key: value for key, value in config.items() if not key.startswith("_")}, 16).macs
    assert made.samples == 64_000
    assert made.macs_per_sample == pytest.approx(macs, rel=0.05)  # counted there with 77 text tokens
    assert made.training_flops == pytest.approx(6 * made.macs_per_sample * 64_000)
    assert made.gpu_hours == pytest.approx(made.training_flops / (989e12 * 0.5) / 3600)
    assert made.days == pytest.approx(made.gpu_hours / 4 / 24)
    recomputed = plan(recipe("mini/flow.yaml", *settings, "train.activation_checkpointing=true"), 4, "h100", 0.5)
    assert recomputed.training_flops == pytest.approx(made.training_flops * 4 / 3)
    assert recomputed.memory["activations"] < 0.6 * made.memory["activations"]


def test_memory_and_storage_by_part() -> None:
    made = plan(recipe("mini/flow.yaml"), 1, "rtx4090", 0.4)
    assert made.memory["optimizer"] == 2 * made.memory["weights"] == 8 * made.parameters
    assert made.memory_total == sum(made.memory.values()) and made.fits
    assert made.storage["latents"] == 40960 * 16 * 16 * 16 * 2
    taught = plan(recipe("mini/distill.yaml", f"train.steps={made.steps}"), 1, "rtx4090", 0.4)
    assert taught.memory["teacher"] > 2 * taught.memory["weights"]  # 4 to 8 times as large, in half precision
    assert taught.training_flops > made.training_flops
    big = plan(recipe("mini/flow.yaml", "model=t2i", "data.resolution=1024", "train.batch_size=64"), 1, "rtx4090", 0.4)
    assert not big.fits
    large = plan(recipe("mini/distill.yaml", "model=t2i", "data.resolution=256"), 1, "h200", 0.4, "sd3.5-large")
    assert large.memory["teacher"] == pytest.approx(2 * 8.06e9, rel=0.01)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_activations_are_those_of_a_measured_step(precision: str) -> None:
    settings = recipe("mini/flow.yaml", f"train.precision={precision}", "train.batch_size=4")
    unet = create_unet("mini").train()
    x, states = torch.randn(4, 16, 16, 16), torch.randn(4, 32, 256)
    with LiveMemory() as memory, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        unet(x, torch.rand(4), states, return_dict=False)[0].float().square().mean()
    # Under autocast the weights' bf16 copies are alive too; the plan casts the network.
    copies = sum(p.numel() for p in unet.parameters()) * 2 if precision == "bf16" else 0
    assert activation_bytes(settings, 4, 16) == pytest.approx(memory.peak - copies, rel=0.25)


def test_memory_is_that_of_measured_steps() -> None:
    """Two whole steps of the loop's parts: the sum of the plan's parts is no less than their peak, and not far off."""
    settings = recipe("mini/flow.yaml", "train.precision=fp32", "train.batch_size=4")
    unet = create_unet("mini").train()
    x, states = torch.randn(4, 16, 16, 16), torch.randn(4, 32, 256)
    with LiveMemory() as memory:
        optimizer, average = make_optimizer(unet, settings.train), make_ema(unet, settings.train)
        for _ in range(2):
            optimizer.zero_grad(set_to_none=True)
            unet(x, torch.rand(4), states, return_dict=False)[0].square().mean().backward()
            torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
            optimizer.step()
            average.step(unet.parameters())
    measured = sum(parameter.nbytes for parameter in unet.parameters()) + memory.peak
    planned = plan(settings, 1, "h100", 0.4).memory_total
    assert 0.95 * measured < planned < 1.35 * measured


def test_shards_are_a_part_of_each() -> None:
    whole = plan(recipe("mini/flow.yaml"), 8, "h100", 0.4)
    sharded = plan(recipe("mini/flow.yaml"), 8, "h100", 0.4, shard=True)
    for part in ("weights", "gradients", "optimizer", "moving average"):
        assert sharded.memory[part] == pytest.approx(whole.memory[part] / 8, rel=1e-4)
    for part in ("activations", "teacher"):
        assert sharded.memory[part] == whole.memory[part]
    assert whole.memory["gathered blocks"] == 0 < sharded.memory["gathered blocks"] < 1.5 * whole.memory["weights"]


def test_times_are_readable() -> None:
    assert [duration(days) for days in (3, 0.5, 0.001, 1e-9)] == ["3.0 days", "12.0 hours", "2 min", "1 min"]


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(RECIPES / "debug" / "flow.yaml")
    assert run(["plan", path, "--gpus", "2", "--gpu", "h200", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["gpus"] == 2 and made["memory_of_gpu"] == GPUS["h200"].memory
    assert run(["plan", path]) == 0
    assert "| time on 1 x h100 | 1 min |" in capsys.readouterr().out
    with pytest.raises(RecipeError, match="train.batch_size 8 cannot be divided into 3 GPUs"):
        plan(recipe("debug/flow.yaml"), 3, "h100", 0.4)
    for arguments in (
        [path, "--gpu", "abacus"],
        [path, "--teacher", "nobody"],
        [str(RECIPES / "debug" / "text.yaml")],
        ["no.yaml"],
        [path, "--gpus", "3"],
    ):
        assert run(["plan", *arguments]) != 0
        error = capsys.readouterr().err
        assert error.startswith("snapgen: error: ") and error.count("\n") == 1
