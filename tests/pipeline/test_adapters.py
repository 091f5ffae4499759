"""Adapters (LoRA) of a pipeline: those that fit load in silence, the others are named; offloading changes nothing."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.utils import logging
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from support.offloads import OFFLOADS, Offload, layers
from torch import Tensor

from snapgen.models.presets import create_unet
from snapgen.pipeline.load import load_adapters
from snapgen.pipeline.text_to_image import SnapGenPipeline

TARGETS = ["to_q", "to_kv", "to_out", "ffn.proj_in", "linear_1"]


def draw(pipeline: SnapGenPipeline) -> Tensor:
    """The picture B 3 H W of seed 0."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline("a cat", generator=torch.Generator().manual_seed(0), output_type="pt").images


def adapter(network: Any, targets: list[str], seed: int = 0) -> dict[str, Tensor]:
    """Weights of an adapter for `network` (which gets it), none of them zero; by names without prefix."""
    torch.manual_seed(seed)
    network.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=targets, init_lora_weights=False))
    return {name: tensor.clone() for name, tensor in get_peft_model_state_dict(network).items()}


@pytest.fixture
def pipeline(tiny_model: Path) -> SnapGenPipeline:
    return SnapGenPipeline.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """A good adapter of the UNet."""
    return {f"unet.{name}": tensor for name, tensor in adapter(create_unet("debug"), TARGETS).items()}


@pytest.fixture
def silent(caplog: pytest.LogCaptureFixture) -> Any:
    """Fails if anything warned, Python's way or the libraries'."""
    for name in ("diffusers", "transformers"):
        logging.logging.getLogger(name).propagate = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    assert [record.getMessage() for record in caplog.records if record.levelname != "INFO"] == []


@pytest.fixture
def folder(tmp_path: Path, weights: dict[str, Tensor]) -> Path:
    """A folder with the good adapter, as `snapgen train` writes it."""
    unet = create_unet("debug")
    adapter(unet, TARGETS)
    settings = unet.peft_config["default"].to_dict()
    SnapGenPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(unet),
        unet_lora_adapter_metadata=settings | {"target_modules": sorted(settings["target_modules"])},
    )
    return tmp_path


@pytest.mark.usefixtures("silent")
def test_a_good_adapter_loads_in_silence(
    tiny_model: Path, pipeline: SnapGenPipeline, weights: dict[str, Tensor], folder: Path
) -> None:
    before = draw(pipeline)
    pictures = []
    for load in (
        lambda pipe: pipe.load_lora_weights(dict(weights)),
        lambda pipe: pipe.load_lora_weights(folder),
        lambda pipe: load_adapters(pipe, folder),
        lambda pipe: pipe.unet.load_lora_adapter(dict(weights), prefix="unet"),
        lambda pipe: pipe.unet.load_lora_adapter(folder, prefix="unet"),
        lambda pipe: pipe.unet.load_lora_adapter(
            {name.removeprefix("unet."): tensor for name, tensor in weights.items()}, prefix=None
        ),
    ):
        pipe = SnapGenPipeline.from_pretrained(tiny_model)
        load(pipe)
        pictures.append(draw(pipe))
    assert (pictures[0] - before).abs().max() > 1e-3
    # Without its settings an adapter has the scale 1, here 2.
    assert torch.equal(pictures[3], pictures[0]) and torch.equal(pictures[5], pictures[0])
    assert (pictures[1] - pictures[0]).abs().max() > 1e-4
    assert torch.equal(pictures[2], pictures[1]) and torch.equal(pictures[4], pictures[1])


@pytest.mark.usefixtures("silent")
def test_what_users_of_diffusers_do_with_adapters(pipeline: SnapGenPipeline, weights: dict[str, Tensor]) -> None:
    other = {f"unet.{name}": tensor for name, tensor in adapter(create_unet("debug"), ["to_kv"], seed=1).items()}
    before = draw(pipeline)
    pipeline.load_lora_weights(dict(weights), adapter_name="one")
    one = draw(pipeline)
    pipeline.load_lora_weights(other, adapter_name="other")
    assert pipeline.get_list_adapters() == {"unet": ["one", "other"]}
    pipeline.set_adapters(["one", "other"], [1.0, 0.0])
    torch.testing.assert_close(draw(pipeline), one, rtol=0, atol=1e-5)
    pipeline.set_adapters(["one", "other"], [1.0, 0.5])
    both = draw(pipeline)
    assert (both - one).abs().max() > 1e-3
    pipeline.fuse_lora(adapter_names=["one", "other"])
    torch.testing.assert_close(draw(pipeline), both, rtol=0, atol=1e-4)
    pipeline.unfuse_lora()
    pipeline.disable_lora()
    torch.testing.assert_close(draw(pipeline), before, rtol=0, atol=1e-5)
    pipeline.enable_lora()
    pipeline.delete_adapters("other")
    assert pipeline.get_list_adapters() == {"unet": ["one"]}
    pipeline.unload_lora_weights()
    torch.testing.assert_close(draw(pipeline), before, rtol=0, atol=1e-5)


def renamed(weights: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {name.replace(old, new): tensor for name, tensor in weights.items()}


def of_a_wider_network(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.cat([tensor, tensor], dim=int("lora_A" in name)) for name, tensor in weights.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda weights: renamed(weights, "unet.", "unet.down_blocks."),
            "SnapGenUNet has none of the adapter's layers: there is no down_blocks.*, but .*proj_in, .*to_kv, to_out, ",
        ),
        (lambda weights: renamed(weights, "unet.", "transformer."), "no weight of the adapter begins with 'unet.'"),
        (lambda weights: renamed(weights, "unet.", ""), "no weight of the adapter begins with 'unet.'"),
        (of_a_wider_network, "none of the adapter's layers: .* has another size"),
        (
            lambda weights: {
                name: tensor for name, tensor in renamed(weights, "to_kv", "to_k").items() if "to_k" in name
            },
            "there is no .*to_k, but .*to_k and to_v are one layer, to_kv; to_out.0 is to_out",
        ),
        (lambda weights: renamed(weights, "unet.", "text_encoder."), "CLIPTextModel has none of the adapter's layers"),
        (lambda weights: {}, "no weight of the adapter begins with 'unet.': its first is none"),
    ],
)
def test_an_adapter_that_fits_nowhere_is_refused(
    pipeline: SnapGenPipeline,
    weights: dict[str, Tensor],
    tmp_path: Path,
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    message: str,
) -> None:
    before, changed = draw(pipeline), change(weights)
    with pytest.raises(ValueError, match=message) as refusal:
        pipeline.load_lora_weights(dict(changed))
    assert "\n" not in str(refusal.value)
    save_file(changed, tmp_path / "pytorch_lora_weights.safetensors")
    with pytest.raises(ValueError, match=f"^--lora {tmp_path} does not fit the model: .*{message}"):
        load_adapters(pipeline, tmp_path)
    assert not hasattr(pipeline.unet, "peft_config") and torch.equal(draw(pipeline), before)


def test_a_network_takes_no_strange_adapter_either(weights: dict[str, Tensor]) -> None:
    unet = create_unet("debug")
    with pytest.raises(ValueError, match="no weight of the adapter begins with 'transformer.': its first is unet"):
        unet.load_lora_adapter(dict(weights))
    with pytest.raises(ValueError, match="has none of the adapter's layers: there is no unet"):
        unet.load_lora_adapter(dict(weights), prefix=None)


def test_what_does_not_fit_of_an_adapter_is_named(pipeline: SnapGenPipeline, weights: dict[str, Tensor]) -> None:
    part = {name: tensor for name, tensor in weights.items() if "ffn" not in name}
    pipeline.load_lora_weights(dict(part))
    expected = draw(pipeline)
    pipeline.unload_lora_weights()
    count = len(part) // 2
    with pytest.warns(
        UserWarning, match=f"^2 of {count + 2} layers of the adapter do not fit .* there is no mid.to_k$"
    ):
        pipeline.load_lora_weights(
            part
            | {f"unet.mid.{name}.lora_{side}.weight": torch.ones(2, 2) for name in ("to_k", "to_v") for side in "AB"}
        )
    assert torch.equal(draw(pipeline), expected)
    pipeline.unload_lora_weights()
    with pytest.warns(UserWarning, match="1 of .* weights of the adapter are ignored: they begin with none of unet"):
        pipeline.load_lora_weights(part | {"text_encoder_2.layers.0.lora_A.weight": torch.ones(2, 2)})
    assert torch.equal(draw(pipeline), expected)


@pytest.mark.usefixtures("silent")
def test_an_adapter_of_the_text_encoder(
    pipeline: SnapGenPipeline, weights: dict[str, Tensor], tiny_model: Path
) -> None:
    donor = SnapGenPipeline.from_pretrained(tiny_model).text_encoder
    own = {f"text_encoder.{name}": tensor for name, tensor in adapter(donor, ["q_proj", "v_proj"]).items()}
    before = draw(pipeline)
    pipeline.load_lora_weights(dict(own))
    text = draw(pipeline)
    assert (text - before).abs().max() > 1e-4
    pipeline.unload_lora_weights()
    pipeline.load_lora_weights(own | weights)
    assert pipeline.get_list_adapters() == {"unet": ["default_0"], "text_encoder": ["default_0"]}
    pipeline.text_encoder = None
    with pytest.raises(ValueError, match="weights for text_encoder, which this pipeline lacks"):
        pipeline.load_lora_weights(dict(own))


def test_pickled_adapters_are_not_read(pipeline: SnapGenPipeline, weights: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "pytorch_lora_weights.bin")
    with pytest.raises(OSError, match=r"no file named pytorch_lora_weights.safetensors"):
        pipeline.load_lora_weights(tmp_path)


@pytest.mark.parametrize("targets", [["to_q", "to_k", "to_v", "to_out.0"], ["to_q", "to_out.0"], ["nothing"]])
def test_targets_of_other_networks_are_refused_by_name(targets: list[str]) -> None:
    unet = create_unet("debug")
    unknown = ", ".join(sorted(set(targets) - {"to_q"}))
    message = (
        f"^no layer of SnapGenUNet is called {unknown}; there are linear_1, linear_2, proj_in, proj_out, to_kv, "
        r"to_out, to_q \(to_k and to_v are one layer, to_kv; to_out.0 is to_out\)$"
    )
    with pytest.raises(ValueError, match=message):
        unet.add_adapter(LoraConfig(target_modules=targets))
    assert not hasattr(unet, "peft_config")
    unet.add_adapter(LoraConfig(target_modules=["to_q", "attn2.to_kv"]))
    with pytest.raises(ValueError, match=message):  # the names stay those of the network
        unet.add_adapter(LoraConfig(target_modules=targets), "second")


def test_every_named_layer_can_have_an_adapter() -> None:
    unet = create_unet("debug")
    names = ["linear_1", "linear_2", "proj_in", "proj_out", "to_kv", "to_out", "to_q"]
    for name in names:
        unet.add_adapter(LoraConfig(target_modules=[name]), name)
    assert set(unet.peft_config) == set(names)
    unet.add_adapter(LoraConfig(target_modules=r"down.*\.to_q"), "pattern")
    assert "pattern" in unet.peft_config


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize("offload", OFFLOADS)
def test_adapters_with_offloading(
    tiny_model: Path,
    weights: dict[str, Tensor],
    offload: Offload,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Loaded before it is switched on, or after. Copies, because the pipeline takes the tensors themselves."""
    pipelines = [SnapGenPipeline.from_pretrained(tiny_model) for _ in range(2)]
    pipelines[0].load_lora_weights(copy.deepcopy(weights))
    expected = draw(pipelines[0])
    offload(pipelines[0])
    # Loading takes offloading off and puts it on again, for the GPU that diffusers finds.
    monkeypatch.setattr("diffusers.pipelines.pipeline_utils.get_device", lambda: "cpu:0")
    monkeypatch.setattr(SnapGenPipeline, "enable_sequential_cpu_offload", layers)
    offload(pipelines[1])
    pipelines[1].load_lora_weights(copy.deepcopy(weights))
    for pipeline in pipelines:
        assert torch.equal(draw(pipeline), expected)
        assert torch.equal(draw(pipeline), expected)
    hooks = ("_hf_hook", "_diffusers_hook")
    assert any(hasattr(module, hook) for module in pipelines[1].unet.modules() for hook in hooks)
    pipelines[1].unload_lora_weights()
    assert (draw(pipelines[1]) - expected).abs().max() > 1e-3
