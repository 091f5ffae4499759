"""diffusers' and accelerate's offloading, layerwise casting and regional compilation: the same picture as without.

Without a GPU both devices are the CPU. Sequential offloading puts weights on `meta` between calls all the same; for the
other kinds, `forgetful` makes weights NaN while they are offloaded, so that reading them at any other time gives no
picture.
"""

from pathlib import Path
from typing import Any

import accelerate.hooks
import pytest
import torch
from diffusers import ModelMixin
from diffusers.hooks import apply_layerwise_casting
from support.offloads import CPU, OFFLOADS, Offload, layers, whole_models
from torch import nn
from transformers import PreTrainedModel

from snapgen.models.autoencoder import SnapGenAutoencoder
from snapgen.models.presets import create_autoencoder, create_denoiser, create_unet
from snapgen.models.unet import SnapGenUNet
from snapgen.pipeline.text_to_image import SnapGenPipeline
from snapgen.text.encoder import TextStates
from snapgen.text.load import load_text_encoders

FLOAT8 = torch.float8_e4m3fn


def draw(pipeline: SnapGenPipeline, prompt: str = "a cat", **settings: Any) -> torch.Tensor:
    """The picture B 3 H W of seed 0."""
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipeline(prompt, generator=generator, output_type="pt", **settings).images


@pytest.fixture
def pipeline(tiny_model: Path) -> SnapGenPipeline:
    """A new pipeline, because the tests change it; with every optional part of the networks."""
    pipeline = SnapGenPipeline.from_pretrained(tiny_model)
    torch.manual_seed(1)
    pipeline.unet = create_unet("debug", positions=True, skip_spread=0.6).eval()
    pipeline.vae = create_autoencoder("debug-white").eval()
    return pipeline


def is_away(network: nn.Module) -> bool:
    return all(tensor.is_meta or bool(tensor.isnan().all()) for tensor in network.parameters())


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize("offload", OFFLOADS)
def test_offloading_gives_the_same_picture(pipeline: SnapGenPipeline, offload: Offload) -> None:
    settings = [{}, {"negative_prompt": "two dogs on a blue background"}, {"guidance_scale": 1.0}, {"width": 64}]
    expected = [draw(pipeline, **each) for each in settings]
    offload(pipeline)
    for _ in range(2):  # every call starts and ends with all weights away
        for network in (pipeline.text_encoder, pipeline.unet, pipeline.vae):
            assert is_away(network)
        for each, picture in zip(settings, expected, strict=True):
            assert torch.equal(draw(pipeline, **each), picture)


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize("offload", OFFLOADS)
def test_several_text_encoders_and_a_teacher(
    pipeline: SnapGenPipeline, text_models: list[str], offload: Offload
) -> None:
    torch.manual_seed(0)
    several = SnapGenPipeline(
        create_denoiser("debug-teacher").eval(),
        pipeline.vae,
        **load_text_encoders(text_models, torch.float32),
        default_num_inference_steps=2,
        language_max_length=10,
        language_prefix="two ",
    )
    few = ["text_encoder_2", "text_encoder_3"]
    expected = draw(several), draw(several, negative_prompt="a dog", text_encoders=few)
    offload(several)
    assert torch.equal(draw(several), expected[0])
    assert torch.equal(draw(several, negative_prompt="a dog", text_encoders=few), expected[1])


def test_each_text_encoder_is_visited_once(pipeline: SnapGenPipeline, text_models: list[str]) -> None:
    """By all prompts and negative prompts, however many: moving an encoder takes longer than reading a prompt."""
    several = SnapGenPipeline(
        create_denoiser("debug-teacher").eval(), pipeline.vae, **load_text_encoders(text_models, torch.float32)
    )
    whole_models(several)
    read: list[tuple[str, int]] = []
    for name in several.text_encoders:
        getattr(several, name).register_forward_hook(
            lambda model, inputs, output, name=name: read.append((name, len(output.last_hidden_state)))
        )
    texts = several.encode_prompt(["a cat", "a dog"], negative_prompt=["two cats", "a dog"])
    assert read == [(name, 1) for name in several.text_encoders for _ in range(3)]
    assert torch.equal(texts[0][1], texts[2][1]) and not torch.equal(texts[0][0], texts[2][0])


@pytest.mark.parametrize("offload", OFFLOADS)
def test_an_offloaded_pipeline_is_not_optimized(pipeline: SnapGenPipeline, offload: Offload) -> None:
    offload(pipeline)
    with pytest.raises(ValueError, match="optimize.. keeps the networks on one device: call it without offloading"):
        pipeline.optimize()


@pytest.mark.parametrize("offload", [whole_models, layers])
def test_the_text_is_projected_once_per_picture(pipeline: SnapGenPipeline, offload: Offload) -> None:
    offload(pipeline)
    projections: list[int] = []
    projection = pipeline.unet.mid.transformer.layers[0].attn2.to_kv
    forward = projection.forward
    projection.forward = lambda states: projections.append(1) or forward(states)
    draw(pipeline, num_inference_steps=4)
    assert len(projections) == 1


@torch.no_grad()
@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize("settings", [{"offload_type": "leaf_level"}, {"num_blocks_per_group": 1}])
def test_an_offloaded_autoencoder(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    vae, picture = create_autoencoder("debug-white").eval(), torch.rand(1, 3, 32, 48) * 2 - 1

    def results() -> list[torch.Tensor]:
        latent = vae.encode(picture).latent_dist.mode()
        return [latent, vae.decode(latent).sample, vae(picture).sample]

    expected = results()
    vae.enable_group_offload(CPU, **settings)
    assert is_away(vae)
    for one, other in zip(results(), expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.usefixtures("forgetful")
def test_group_offload_keeps_little_on_the_device() -> None:
    """The parameters that stay there for the whole of `forward` are few."""
    unet = create_unet("debug")
    unet.enable_group_offload(CPU, num_blocks_per_group=1)
    group = unet._diffusers_hook.get_hook("group_offloading").group
    held = sum(tensor.numel() for module in group.modules for tensor in module.parameters())
    assert held < 0.1 * unet.num_parameters()


def test_a_network_spread_over_memory_and_disk(pipeline: SnapGenPipeline, tmp_path: Path) -> None:
    expected = draw(pipeline)
    for name, kind in (("unet", SnapGenUNet), ("vae", SnapGenAutoencoder)):
        network = getattr(pipeline, name)
        network.save_pretrained(tmp_path / name)
        size = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
        spread = kind.from_pretrained(
            tmp_path / name,
            device_map="auto",
            max_memory={"cpu": int(0.7 * size)},
            offload_folder=tmp_path / f"{name}_away",
        )
        assert set(spread.hf_device_map.values()) == {"cpu", "disk"}
        setattr(pipeline, name, spread)
    assert torch.equal(draw(pipeline), expected)


@pytest.mark.parametrize("parts", [("unet", "vae"), ("unet", "vae", "text_encoder")])
def test_layerwise_casting_stores_in_8_bits(pipeline: SnapGenPipeline, parts: tuple[str, ...]) -> None:
    exact = draw(pipeline)
    for part in parts:
        network = getattr(pipeline, part)
        apply_layerwise_casting(network, storage_dtype=FLOAT8, compute_dtype=torch.float32)
        assert any(tensor.dtype == FLOAT8 for tensor in network.parameters())
    assert pipeline.unet.dtype == pipeline.vae.dtype == torch.float32
    cast = draw(pipeline)
    assert cast.isfinite().all() and 0 < (cast - exact).abs().mean() < 0.05
    rounded = SnapGenPipeline(
        create_unet("debug", positions=True, skip_spread=0.6).eval(),
        create_autoencoder("debug-white").eval(),
        pipeline.text_encoder,
        pipeline.tokenizer,
        default_num_inference_steps=2,
    )
    for part in ("unet", "vae"):
        state = getattr(pipeline, part).state_dict()
        getattr(rounded, part).load_state_dict({name: tensor.float() for name, tensor in state.items()})
    assert torch.equal(draw(rounded), cast)


def test_a_network_may_be_cast_as_a_whole(pipeline: SnapGenPipeline) -> None:
    """Its hook then acts around `forward` alone."""
    for network in (pipeline.unet, pipeline.text_encoder):
        apply_layerwise_casting(network, FLOAT8, torch.float32, skip_modules_pattern=None)
    assert draw(pipeline).isfinite().all()


def test_repeated_blocks_are_compiled_once_per_width(pipeline: SnapGenPipeline) -> None:
    graphs: list[Any] = []

    def as_it_is(graph: Any, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    expected = draw(pipeline), draw(pipeline, "two dogs on a blue background")
    pipeline.unet.compile_repeated_blocks(backend=as_it_is, fullgraph=True)
    torch.testing.assert_close(draw(pipeline), expected[0], rtol=0, atol=1e-5)
    blocks = {
        (module.norm2.weight.shape, module.attn1 is None)
        for module in pipeline.unet.modules()
        if type(module).__name__ in pipeline.unet._repeated_blocks
    }
    assert len(graphs) == len(blocks) == 2
    torch.testing.assert_close(draw(pipeline, "two dogs on a blue background"), expected[1], rtol=0, atol=1e-5)
    assert len(graphs) == 2  # the prompt's padding is kept: another length is no other graph


@pytest.mark.parametrize("teacher", [False, True])
def test_every_tensor_is_on_the_execution_device(
    pipeline: SnapGenPipeline, monkeypatch: pytest.MonkeyPatch, teacher: bool
) -> None:
    """Wherever the components say that their weights are: with offloading that is another device.

    Here everything is on `meta`, which like a GPU refuses to compute with tensors on the CPU; the components claim to
    be on the CPU.
    """
    if teacher:
        pipeline.unet = create_denoiser("debug-teacher").eval()
    meta = torch.device("meta")
    pipeline.to(meta)
    monkeypatch.setattr(SnapGenPipeline, "_execution_device", meta)
    for kind in (ModelMixin, PreTrainedModel):
        monkeypatch.setattr(kind, "device", CPU)
    # What reads values, which `meta` has not.
    monkeypatch.setattr("transformers.masking_utils.fast_all", lambda mask: False)
    monkeypatch.setattr(TextStates, "trimmed", lambda text: text)
    picture = pipeline("a cat", negative_prompt="a dog", output_type="pt").images
    assert picture.shape == (1, 3, 32, 32) and picture.device == meta


@torch.no_grad()
def test_a_unet_on_two_devices(pipeline: SnapGenPipeline) -> None:
    """As `device_map` spreads it over two GPUs: skips reach the other device. `meta` is the second one."""
    unet = pipeline.unet
    second = ("up", "upsamplers", "norm_out", "conv_out")
    places = {name: "meta" if name in second else "cpu" for name, _ in unet.named_children()}
    accelerate.hooks.attach_align_device_hook_on_blocks(unet, {"": "cpu"} | places, dict.fromkeys(places, False))
    accelerate.hooks.remove_hook_from_module(unet)  # it would bring the velocity back, which `meta` cannot
    velocity = unet(torch.randn(1, 16, 4, 6), 500.0, unet.text_key_values(torch.randn(1, 3, 32))).sample
    assert velocity.shape == (1, 16, 4, 6)
    assert {unet.mid.residual.norm1.weight.device.type, unet.conv_out[0].weight.device.type} == {"cpu", "meta"}


def test_text_encoders_in_8_bits_may_be_dropped(pipeline: SnapGenPipeline, text_models: list[str]) -> None:
    """The zeros of an encoder that reads nothing can be joined with what the others compute."""
    several = SnapGenPipeline(pipeline.unet, pipeline.vae, **load_text_encoders(text_models, torch.float32))
    for name in several.text_encoders:
        apply_layerwise_casting(getattr(several, name), FLOAT8, torch.float32)
    encode = several.joint_text_encoder()
    for dropped in ([False, False, False], [False, True, True], [True, True, False]):
        texts = [encode([prompt], torch.tensor([dropped])) for prompt in ("a cat", "")]
        states = TextStates.cat(texts).states
        assert states.dtype == torch.float32 and states[0].abs().max() > 0 and states[1].abs().max() == 0
