"""What a plan says, against hand calculations and against a measured training step."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, Gemma2Config, Gemma2Model, T5Config, T5EncoderModel

from snapgen.cli.main import run
from snapgen.config import Recipe, RecipeError
from snapgen.machine.counting import LiveMemory
from snapgen.models.lpips import vgg16_features
from snapgen.models.presets import create_denoiser, create_unet
from snapgen.models.unet import SnapGenUNet
from snapgen.pipeline.text_to_image import SnapGenPipeline
from snapgen.profiling.counts import count_unet
from snapgen.profiling.plan import GPUS, duration, human, plan
from snapgen.train.cost import TEXT_MODELS, Cost
from snapgen.train.loop import only_train
from snapgen.train.optimizer import make_optimizer
from snapgen.train.stage import Context, Stage
from snapgen.train.stages import load_recipe, load_stage
from snapgen.train.state import make_ema

RECIPES = Path(__file__).parents[2] / "recipes"


def recipe(name: str, *overrides: str) -> Any:
    return load_recipe(RECIPES / name, overrides)


def cost(settings: Any, batch: int, teacher: str | None = None) -> Cost:
    return load_stage(settings.stage).cost(settings, batch, teacher)


@pytest.mark.slow
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


@pytest.mark.slow
def test_memory_and_storage_by_part() -> None:
    made = plan(recipe("mini/flow.yaml"), 1, "rtx4090", 0.4)
    adamw = plan(recipe("mini/flow.yaml", "train.optimizer=adamw"), 1, "rtx4090", 0.4)
    assert adamw.memory["optimizer"] == 2 * adamw.memory["weights"] == 8 * adamw.parameters
    assert made.memory["optimizer"] < 0.6 * adamw.memory["optimizer"]  # one moment of nearly all
    assert made.memory_total == sum(made.memory.values()) and made.fits
    assert made.storage["latents"] == 65536 * 16 * 16 * 16 * 2
    taught = plan(recipe("mini/distill.yaml", f"train.steps={made.steps}"), 1, "rtx4090", 0.4)
    assert taught.memory["teacher"] > 2 * taught.memory["weights"]  # 4 to 8 times as large, in half precision
    assert taught.training_flops > made.training_flops
    own = recipe("mini/step.yaml")  # its teacher is the student before training
    assert cost(own, 16).flops["teacher"] == cost(own, 16, "mini").flops["teacher"]
    big = plan(recipe("mini/flow.yaml", "model=t2i", "data.resolution=1024", "train.batch_size=64"), 1, "rtx4090", 0.4)
    assert not big.fits
    large = plan(recipe("mini/distill.yaml", "model=t2i", "data.resolution=256"), 1, "h200", 0.4, "sd3.5-large")
    assert large.memory["teacher"] == pytest.approx(2 * 8.06e9, rel=0.01)


@pytest.mark.slow
def test_stored_targets_are_asked_for_once() -> None:
    settings = [
        "teacher=stabilityai/stable-diffusion-3.5-large",
        "model=t2i",
        "data.resolution=1024",
        "data.count=1000",
    ]
    asked, stored = (
        plan(recipe("mini/distill.yaml", *settings, *more), 1, "h200", 0.4)
        for more in ([], ["draws=3", "target_cache=targets"])
    )
    draw = 2 * (16 * 128 * 128 + 2432 * 64 * 64)  # bf16: velocity, features
    assert stored.storage == asked.storage | {"teacher's targets": 3 * 1000 * draw}
    assert stored.flops["teacher"] == pytest.approx(asked.flops["teacher"] * 3 * 1000 / asked.samples)
    velocities = recipe("mini/distill.yaml", *settings, "draws=1", "target_cache=x", "distillation.features=false")
    assert plan(velocities, 1, "h200", 0.4).storage["teacher's targets"] == 1000 * 2**19


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_activations_are_those_of_a_measured_step(precision: str) -> None:
    settings = recipe("mini/flow.yaml", f"train.precision={precision}", "train.batch_size=4")
    unet = create_unet("mini").train()
    x, states = torch.randn(4, 16, 16, 16), torch.randn(4, 32, 256)
    with LiveMemory() as memory, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        unet(x, torch.rand(4), states, return_dict=False)[0].float().square().mean()
    # Under autocast the weights' bf16 copies are alive too; the plan casts the network.
    copies = sum(p.numel() for p in unet.parameters()) * 2 if precision == "bf16" else 0
    assert load_stage("flow").cost(settings, 4).activations == pytest.approx(memory.peak - copies, rel=0.25)


@pytest.mark.slow
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
    made = plan(settings, 1, "h100", 0.4)
    planned = made.memory_total - made.memory["autoencoder"]  # which the loop's parts are not
    assert 0.95 * measured < planned < 1.35 * measured


@pytest.mark.slow
def test_shards_are_a_part_of_each() -> None:
    adamw = recipe("mini/flow.yaml", "train.optimizer=adamw")
    whole, sharded = (plan(adamw, 8, "h100", 0.4, shard=shard) for shard in (False, True))
    with pytest.raises(RecipeError, match="train.optimizer: muon needs whole matrices"):
        plan(recipe("mini/flow.yaml"), 8, "h100", 0.4, shard=True)
    for part in ("weights", "gradients", "optimizer", "moving average"):
        assert sharded.memory[part] == pytest.approx(whole.memory[part] / 8, rel=1e-4)
    for part in ("activations", "autoencoder"):
        assert sharded.memory[part] == whole.memory[part]
    assert whole.memory["gathered blocks"] == 0 < sharded.memory["gathered blocks"] < 1.5 * whole.memory["weights"]


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(RECIPES.glob("paper/*.yaml")), ids=lambda path: path.stem)
def test_every_paper_recipe_fits_on_eight_gpus(path: Path) -> None:
    made = plan(recipe(f"paper/{path.name}"), 8, "h100", 0.4)
    assert made.fits and made.uncounted == ()
    assert made.training_flops == pytest.approx(sum(made.flops.values())) and min(made.flops.values()) > 0
    assert made.samples == made.steps * recipe(f"paper/{path.name}").train.batch_size
    taught = {"distill": {"teacher", "projector"}, "step": {"teacher", "adversary"}}
    assert taught.get(recipe(f"paper/{path.name}").stage, set()) <= made.flops.keys()
    if "distill" in path.stem or "step" in path.stem:
        assert made.memory["teacher"] == pytest.approx(2 * 8.06e9, rel=0.01)
        assert made.memory["text encoders"] > 2 * (2.6e9 + 4.7e9)  # Gemma-2-2b, and the teacher's T5-XXL


def make_stage(settings: Any, run: Path) -> Stage[Recipe, torch.nn.Module]:
    context = Context(torch.device("cpu"), 0, 1, run, lambda items, description, total: items)
    return load_stage(settings.stage)(settings, context)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["step", "decoder"])
def test_flops_and_activations_are_those_of_a_measured_step(name: str, tiny_model: Path, tmp_path: Path) -> None:
    """All turns of the stage, backward passes included, as the operators themselves are counted.

    PyTorch counts a depthwise kernel's gradient as a full kernel's; the plan does not, and that much is added here.
    """
    places = {"autoencoder": tiny_model / "vae", "text": tiny_model, "cache": tmp_path / "latents"}
    if name == "step":
        SnapGenPipeline.from_pretrained(tiny_model, unet=create_denoiser("debug-teacher")).save_pretrained(tmp_path)
        places |= {"initial": tiny_model, "teacher": tmp_path}
    if name == "decoder":
        places = {"initial": tiny_model / "vae"}
    settings = recipe(f"debug/{name}.yaml", *(f"{key}={place}" for key, place in places.items()))
    stage = make_stage(settings, tmp_path)
    optimizer = make_optimizer(stage.model, settings.train)
    batch, measured = stage.batch(0), 0
    for turn in stage.turns:
        optimizer.zero_grad(set_to_none=True)
        only_train(optimizer, stage.learners(turn))
        with FlopCounterMode(display=False) as counter, LiveMemory() as memory:
            loss = stage.turn_loss(turn, stage.model, batch)["loss"]
            peak = memory.peak
            loss.backward()
        measured += counter.get_total_flops()
    work = cost(settings, settings.train.batch_size, "debug-teacher" if name == "step" else None)
    planned = sum(flops for part, flops in work.flops.items() if not part.startswith("encoding"))
    if name == "step":
        planned += backward_excess(create_unet("debug"), batch)
    assert settings.train.batch_size * planned == pytest.approx(measured, rel=0.2)
    assert work.activations == pytest.approx(peak, rel=0.3)  # of the last turn, the generator's


def backward_excess(unet: SnapGenUNet, batch: dict[str, torch.Tensor]) -> float:
    """What is counted of a sample's backward pass through `unet` beyond two forward passes."""
    with FlopCounterMode(display=False) as counter:
        velocity = unet(batch["x0"], batch["sigmas"], batch["states"], batch["mask"], return_dict=False)[0]
        forward = counter.get_total_flops()
        velocity.square().mean().backward()
        return (counter.get_total_flops() - 3 * forward) / len(batch["x0"])


def test_adapters_alone_have_gradients() -> None:
    made = plan(recipe("mini/lora.yaml"), 1, "h100", 0.4)
    assert made.memory["optimizer"] == 2 * made.memory["gradients"] == 8 * made.parameters
    assert made.memory["weights"] > 10 * made.memory["gradients"]
    assert made.flops["network"] == pytest.approx(4 * made.macs_per_sample * made.samples)


def test_text_encoders_are_as_large_as_published() -> None:
    shapes: dict[str, tuple[Any, Any]] = {
        "openai/clip-vit-large-patch14": (CLIPTextModel, CLIPTextConfig(**clip(768, 12, 12))),
        "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k": (CLIPTextModel, CLIPTextConfig(**clip(1280, 32, 20))),
        "google/gemma-2-2b": (Gemma2Model, Gemma2Config()),  # the defaults are but for two of them the 2b's
        "google/t5-v1_1-xxl": (
            T5EncoderModel,
            T5Config(d_model=4096, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu"),
        ),
    }
    for name, (kind, config) in shapes.items():
        with torch.device("meta"):
            named = dict(kind(config).named_parameters())
        looked_up = sum(
            p.numel() for key, p in named.items() if "embedding" in key or "embed_" in key or "shared" in key
        )
        found = sum(p.numel() for p in named.values())
        assert (found, looked_up) == (TEXT_MODELS[name].parameters, TEXT_MODELS[name].embeddings), name
    assert sum(p.numel() for p in vgg16_features().parameters()) == 14_714_688


def clip(width: int, layers: int, heads: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


@pytest.mark.slow
def test_storage_of_a_cache_of_unknown_size() -> None:
    settings = recipe("paper/imagenet_256.yaml")
    assert plan(settings, 8, "h100", 0.4).storage["latents, each picture"] == 32 * 32 * 16 * 2
    assert plan(settings, 8, "h100", 0.4, pictures=1_281_167).storage["latents"] == 1_281_167 * 32 * 32 * 16 * 2


def test_times_are_readable() -> None:
    assert [human(size) for size in (32_768, 246e6, 16.1e9)] == ["32.8 kB", "246.0 MB", "16.10 GB"]
    assert [duration(days) for days in (3, 0.5, 0.001, 1e-9)] == ["3.0 days", "12.0 hours", "2 min", "1 min"]


@pytest.mark.slow
def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(RECIPES / "debug" / "flow.yaml")
    assert run(["plan", path, "--gpus", "2", "--gpu", "h200", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["gpus"] == 2 and made["memory_of_gpu"] == GPUS["h200"].memory
    assert run(["plan", path]) == 0
    assert "| time on 1 x h100 | 1 min |" in capsys.readouterr().out
    with pytest.raises(
        RecipeError, match="train.batch_size 8 cannot be divided into train.gradient_accumulation 1 x 3 processes"
    ):
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
