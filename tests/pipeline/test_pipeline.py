"""SnapGenPipeline, whole but tiny: from a saved folder to pictures."""

import json
import shutil
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from support.drawing import draw, seeds

from snapgen.models.presets import create_denoiser
from snapgen.pipeline.bundled import BUNDLED, bundled_folder
from snapgen.pipeline.image_to_image import SnapGenImg2ImgPipeline
from snapgen.pipeline.text_to_image import SnapGenPipeline
from snapgen.text.join import TEXT_ENCODERS, tokenizer_of
from snapgen.text.load import load_text_encoders
from snapgen.weights import network_hash

PROMPTS = ["a cat", "two red apples", "", "a dog on a blue background", "red", "a", "two dog"]


@pytest.fixture(scope="module")
def pipeline(tiny_model: Path) -> SnapGenPipeline:
    pipeline = SnapGenPipeline.from_pretrained(tiny_model)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_output_types(pipeline: SnapGenPipeline) -> None:
    pil, array, tensor = (draw(pipeline, "a cat", output_type=kind) for kind in ("pil", "np", "pt"))
    assert isinstance(pil, list) and isinstance(pil[0], Image.Image) and pil[0].size == (32, 32)
    assert isinstance(array, np.ndarray) and array.shape == (1, 32, 32, 3)
    assert tensor.shape == (1, 3, 32, 32) and tensor.min() >= 0 and tensor.max() <= 1
    assert np.array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    assert np.array_equal(np.asarray(pil[0]), np.round(array[0] * 255).astype(np.uint8))
    latents = draw(pipeline, "a cat", output_type="latent")
    assert latents.shape == (1, 16, 4, 4) and latents.dtype == torch.float32
    with torch.no_grad():
        decoded = pipeline.vae.decode(pipeline.vae.denormalize(latents)).sample
    torch.testing.assert_close((decoded / 2 + 0.5).clamp(0, 1), tensor)
    as_tuple = pipeline("a cat", generator=seeds(0), output_type="pt", return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], tensor)


@torch.no_grad()
def test_a_teacher_reads_padding_as_in_training(tiny_model: Path) -> None:
    torch.manual_seed(0)
    network = create_denoiser("debug-teacher").eval()
    pipeline = SnapGenPipeline.from_pretrained(tiny_model, unet=network)
    noise = torch.randn(1, 16, 4, 4)
    drawn = pipeline("a cat", latents=noise, num_inference_steps=1, guidance_scale=3.0, output_type="latent").images
    text = [pipeline.encode_text([prompt]) for prompt in ("", "a cat")]
    without, given = (network(noise, 1000.0, states.states, states.mask).sample for states in text)
    torch.testing.assert_close(drawn, noise - (without + 3 * (given - without)))
    few = text[1].trimmed()
    assert (network(noise, 1000.0, few.states, few.mask).sample - given).abs().max() > 1e-3


def test_defaults_are_the_models_own(pipeline: SnapGenPipeline) -> None:
    steps: list[int] = []

    def count(pipe: SnapGenPipeline, step: int, timestep: torch.Tensor, given: dict[str, Any]) -> dict[str, Any]:
        steps.append(step)
        return given

    default = draw(pipeline, "a cat", callback_on_step_end=count)
    assert steps == [0, 1] and pipeline.num_timesteps == 2
    assert pipeline.guidance_scale == 4.0 and pipeline.do_classifier_free_guidance
    named = draw(pipeline, "a cat", num_inference_steps=2, guidance_scale=4.0, height=32, width=32)
    assert torch.equal(named, default)


def test_the_sampling_is_that_of_the_flow(pipeline: SnapGenPipeline) -> None:
    """Two guided Euler steps with shift 3, written out: sigma 1, 3/4, 0."""
    noise = torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(3))
    text, empty = pipeline.encode_text("a cat"), pipeline.encode_text("")
    x = noise
    with torch.no_grad():
        for sigma, following in ((1.0, 0.75), (0.75, 0.0)):
            v, v_empty = (
                pipeline.unet(x, 1000 * sigma, part.states, part.mask, return_dict=False)[0] for part in (text, empty)
            )
            x = x + (following - sigma) * (v_empty + 2.5 * (v - v_empty))
    latents = draw(pipeline, "a cat", seed=3, num_inference_steps=2, guidance_scale=2.5, output_type="latent")
    torch.testing.assert_close(latents, x, rtol=1e-4, atol=1e-5)
    given = pipeline("a cat", latents=noise, num_inference_steps=2, guidance_scale=2.5, output_type="latent").images
    assert torch.equal(given, latents)


def test_the_network_reads_no_more_tokens_than_the_prompts_have(
    pipeline: SnapGenPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test before this one shows that nothing is lost."""
    read, project = [], pipeline.unet.text_key_values
    monkeypatch.setattr(
        pipeline.unet, "text_key_values", lambda states: read.append(states.shape[1]) or project(states)
    )
    given = [int(pipeline.encode_text(text).mask.sum()) for text in ("a cat", "two dogs on a blue background")]
    draw(pipeline, "a cat", negative_prompt="two dogs on a blue background")
    assert read == [max(given)]  # once for all steps
    draw(pipeline, "a cat", guidance_scale=1.0)
    assert read == [max(given), given[0]]
    assert max(given) < pipeline.encode_text("a cat").mask.shape[1]


def test_shapes_at_the_boundaries_of_the_loop(pipeline: SnapGenPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pictures of one prompt, wider than high: B N D, B C h w, B 3 H W. On a CPU one by one, guided as a pair."""
    text = pipeline.encode_text(["a cat", ""])
    assert text.states.shape == (2, 16, 32) and text.mask.shape == (2, 16)
    assert pipeline.prepare_latents(2, 32, 64, None, None).shape == (2, 16, 4, 8)
    calls: list[tuple[tuple[int, ...], float]] = []
    predict = pipeline.predict_velocity

    def watch(x: torch.Tensor, sigma: float, text: Any) -> torch.Tensor:
        calls.append((tuple(x.shape), sigma))
        velocity = predict(x, sigma, text)
        assert velocity.shape == x.shape and velocity.dtype == torch.float32
        return velocity

    monkeypatch.setattr(pipeline, "predict_velocity", watch)
    pictures = draw(pipeline, "a cat", num_images_per_prompt=2, width=64, guidance_interval=(0.9, 1.0))
    assert pictures.shape == (2, 3, 32, 64)
    assert calls == [((2, 16, 4, 8), 1.0)] * 2 + [((1, 16, 4, 8), 0.75)] * 2


def test_the_network_is_given_a_thousand_sigma(pipeline: SnapGenPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    given, forward = [], pipeline.unet.forward

    def watch(x: torch.Tensor, timestep: torch.Tensor, *rest: Any, **settings: Any) -> Any:
        given.append(timestep.item())
        return forward(x, timestep, *rest, **settings)

    monkeypatch.setattr(pipeline.unet, "forward", watch)
    draw(pipeline, "a cat", num_inference_steps=4)
    assert given == pytest.approx([1000, 900, 750, 500])


@pytest.mark.parametrize("settings", [{}, {"guidance_scale": 1.0}, {"height": 64}, {"negative_prompt": "a dog"}])
def test_a_picture_is_the_same_to_the_bit_in_any_batch(pipeline: SnapGenPipeline, settings: dict[str, Any]) -> None:
    together = draw(pipeline, PROMPTS, seed=10, **settings)
    for index, prompt in enumerate(PROMPTS):
        assert torch.equal(draw(pipeline, prompt, seed=10 + index, **settings)[0], together[index])
    several = draw(pipeline, PROMPTS[:2], seed=10, num_images_per_prompt=2, **settings)
    assert torch.equal(draw(pipeline, PROMPTS[1], seed=13, **settings)[0], several[3])


def test_prompt_seed_and_negative_prompt_matter(pipeline: SnapGenPipeline) -> None:
    picture = draw(pipeline, "a cat")
    assert torch.equal(draw(pipeline, "a cat"), picture)
    for other in (
        draw(pipeline, "a dog"),
        draw(pipeline, "a cat", seed=1),
        draw(pipeline, "a cat", negative_prompt="a dog"),
        draw(pipeline, "a cat", guidance_scale=1.0),
        draw(pipeline, "a cat", guidance_interval=(0.0, 0.8)),
        draw(pipeline, "a cat", num_inference_steps=3),
    ):
        assert not torch.equal(other, picture)
    assert torch.equal(draw(pipeline, "a cat", negative_prompt=[""]), picture)
    unguided = draw(pipeline, "a cat", guidance_scale=1.0)
    with pytest.warns(UserWarning, match="negative_prompt has no effect: guidance_scale is 1"):
        assert torch.equal(draw(pipeline, "a cat", guidance_scale=1.0, negative_prompt="a dog"), unguided)


@pytest.mark.parametrize("size", [(32, 64), (96, 32)])
def test_sizes(pipeline: SnapGenPipeline, size: tuple[int, int]) -> None:
    assert draw(pipeline, "a cat", height=size[0], width=size[1]).shape == (1, 3, *size)


def test_one_generator_for_all(pipeline: SnapGenPipeline) -> None:
    one, same = (
        pipeline(PROMPTS[:2], generator=torch.Generator().manual_seed(0), output_type="pt").images for _ in range(2)
    )
    assert torch.equal(one, same) and not torch.equal(one[0], one[1])
    assert torch.equal(one[0], draw(pipeline, PROMPTS[0])[0])


def test_a_callback_sees_and_changes_the_latents(pipeline: SnapGenPipeline) -> None:
    seen: list[tuple[int, float]] = []

    def blank(pipe: SnapGenPipeline, step: int, timestep: torch.Tensor, given: dict[str, Any]) -> dict[str, Any]:
        seen.append((step, timestep.item()))
        assert given["latents"].shape == (1, 16, 4, 4)
        return {"latents": torch.zeros_like(given["latents"])} if step == 2 else {}

    latents = draw(pipeline, "a cat", num_inference_steps=3, output_type="latent", callback_on_step_end=blank)
    assert seen == [(0, 1000.0), (1, pytest.approx(6000 / 7)), (2, pytest.approx(600))]
    assert latents.abs().max() == 0


def test_a_callback_may_change_the_guidance(pipeline: SnapGenPipeline) -> None:
    def switch_off(pipe: SnapGenPipeline, step: int, timestep: torch.Tensor, given: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = 1.0
        return given

    switched = draw(pipeline, "a cat", callback_on_step_end=switch_off)
    assert torch.equal(switched, draw(pipeline, "a cat", guidance_interval=(0.9, 1.0)))  # the first step alone


def test_a_changed_guidance_scale_holds_from_the_next_step(pipeline: SnapGenPipeline) -> None:
    """As a call with the new scale does whose first step is replaced by that of the old one."""
    first: list[torch.Tensor] = []

    def change(pipe: SnapGenPipeline, step: int, timestep: torch.Tensor, given: dict[str, Any]) -> dict[str, Any]:
        first.append(given["latents"])
        pipe._guidance_scale = 8.0
        return given

    def replace(pipe: SnapGenPipeline, step: int, timestep: torch.Tensor, given: dict[str, Any]) -> dict[str, Any]:
        return {"latents": first[0]} if step == 0 else given

    changed = draw(pipeline, "a cat", guidance_scale=2.0, callback_on_step_end=change)
    assert torch.equal(changed, draw(pipeline, "a cat", guidance_scale=8.0, callback_on_step_end=replace))
    assert not torch.equal(changed, draw(pipeline, "a cat", guidance_scale=2.0))


def test_interrupting_skips_the_steps_that_are_left(pipeline: SnapGenPipeline) -> None:
    steps: list[int] = []
    kept: list[torch.Tensor] = []

    def stop(pipe: SnapGenPipeline, step: int, timestep: torch.Tensor, given: dict[str, Any]) -> dict[str, Any]:
        steps.append(step)
        kept.append(given["latents"])
        pipe._interrupt = step == 1
        return given

    latents = draw(pipeline, "a cat", num_inference_steps=5, output_type="latent", callback_on_step_end=stop)
    assert steps == [0, 1]
    assert torch.equal(latents, kept[-1])
    assert torch.equal(draw(pipeline, "a cat"), draw(pipeline, "a cat"))  # the next call is not interrupted


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": None}, "prompt is None"),
        ({"prompt": []}, r"prompt is \[\]"),
        ({"prompt": ["a", 3]}, r"prompt is \['a', 3\]"),
        ({"negative_prompt": 3}, "negative_prompt is 3"),
        ({"negative_prompt": ["a", "b"]}, "negative_prompt is a list of another length"),
        ({"height": 0}, "height is 0, expected a multiple of 32 from 32 to 4096"),
        ({"height": 100}, "height is 100"),
        ({"width": -32}, "width is -32"),
        ({"width": 8192}, "width is 8192"),
        ({"width": 64.0}, "width is 64.0"),
        ({"width": "64"}, "width is '64'"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0, expected 1 to 1000"),
        ({"num_inference_steps": 1_000_000}, "num_inference_steps is 1000000"),
        ({"num_inference_steps": 2.5}, "num_inference_steps is 2.5"),
        ({"guidance_scale": -1}, "guidance_scale is -1, expected a finite number of at least 0"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
        ({"guidance_scale": "4"}, "guidance_scale is '4'"),
        ({"guidance_interval": (0.5, 0.2)}, r"guidance_interval is \(0.5, 0.2\)"),
        ({"guidance_interval": (0.5,)}, r"guidance_interval is \(0.5,\)"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
        ({"generator": seeds(1, 2)}, "generator has 2 entries, expected one for each of 1 pictures"),
        ({"latents": torch.zeros(1, 16, 8, 8)}, r"latents have shape \(1, 16, 8, 8\), expected \(1, 16, 4, 4\)"),
        ({"output_type": "jpeg"}, "output_type is 'jpeg', expected one of pil, np, pt, latent"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, r"callback_on_step_end_tensor_inputs names \['noise'\]"),
    ],
)
def test_bad_arguments_are_named(pipeline: SnapGenPipeline, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        pipeline(**{"prompt": "a cat"} | arguments)


def test_a_prompt_that_is_too_long_is_cut_with_a_warning(pipeline: SnapGenPipeline) -> None:
    with pytest.warns(UserWarning, match="the text encoder reads the first 16"):
        picture = draw(pipeline, "red " * 2500)
    assert picture.isfinite().all()


def test_the_progress_bar(tiny_model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pipeline = SnapGenPipeline.from_pretrained(tiny_model)
    capfd.readouterr()
    draw(pipeline, "a cat", num_inference_steps=3)
    assert "3/3" in capfd.readouterr().err
    pipeline.set_progress_bar_config(disable=True)
    draw(pipeline, "a cat")
    assert capfd.readouterr().err == ""


def test_save_and_load(pipeline: SnapGenPipeline, tmp_path: Path) -> None:
    pipeline.register_to_config(shift=2.0)
    try:
        picture = draw(pipeline, "a cat")
        pipeline.save_pretrained(tmp_path)
    finally:
        pipeline.register_to_config(shift=3.0)
    loaded = SnapGenPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.config.shift == 2.0
    assert torch.equal(draw(loaded, "a cat"), picture)
    assert not torch.equal(draw(pipeline, "a cat"), picture)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(tiny_model: Path, pipeline: SnapGenPipeline, dtype: torch.dtype) -> None:
    half = SnapGenPipeline.from_pretrained(tiny_model, dtype=dtype)
    half.set_progress_bar_config(disable=True)
    assert half.unet.dtype == half.vae.dtype == half.text_encoder.dtype == dtype
    picture = draw(half, "a cat")
    assert picture.dtype == torch.float32
    assert (picture - draw(pipeline, "a cat")).abs().mean() < 0.03


def test_text_can_be_encoded_without_the_rest(pipeline: SnapGenPipeline) -> None:
    alone = SnapGenPipeline(None, None, pipeline.text_encoder, pipeline.tokenizer)
    assert torch.equal(alone.encode_text(PROMPTS).states, pipeline.encode_text(PROMPTS).states)


@pytest.fixture
def several(pipeline: SnapGenPipeline, text_models: list[str]) -> SnapGenPipeline:
    """A pipeline of three text encoders."""
    made = SnapGenPipeline(
        pipeline.unet,
        pipeline.vae,
        **load_text_encoders(text_models, torch.float32),
        default_num_inference_steps=2,
        language_max_length=10,
        language_prefix="two ",
    )
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("size", [1, 2, 3])
def test_absent_text_encoders_give_the_picture_of_omitted_ones(
    several: SnapGenPipeline, tmp_path: Path, size: int
) -> None:
    """Every subset, from a folder in which the others are not even opened."""
    several.save_pretrained(tmp_path / "whole")
    for chosen in combinations(TEXT_ENCODERS, size):
        absent = [part for name in TEXT_ENCODERS if name not in chosen for part in (name, tokenizer_of(name))]
        shutil.copytree(tmp_path / "whole", folder := tmp_path / "-".join(chosen))
        for part in absent:
            shutil.rmtree(folder / part)
        some = SnapGenPipeline.from_pretrained(folder, **dict.fromkeys(absent))
        some.set_progress_bar_config(disable=True)
        assert some.text_encoders == list(chosen) and some.config.text_layout == several.config.text_layout
        assert torch.equal(draw(some, "a cat"), draw(several, "a cat", text_encoders=list(chosen)))
        assert SnapGenImg2ImgPipeline(**some.components, **some.settings).config.text_layout == some.config.text_layout
        some.save_pretrained(tmp_path / "again")
        again = SnapGenPipeline.from_pretrained(tmp_path / "again")
        assert again.text_encoders == list(chosen) and again.config.text_layout == several.config.text_layout


def test_without_a_layout_an_absent_text_encoder_is_refused(several: SnapGenPipeline, tmp_path: Path) -> None:
    """As in folders from before it was kept: nobody could say where the others stand."""
    several.save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    entries = json.loads(index.read_text())
    del entries["text_layout"]
    index.write_text(json.dumps(entries))
    assert SnapGenPipeline.from_pretrained(tmp_path).config.text_layout == several.config.text_layout
    with pytest.raises(ValueError, match="text_encoder is absent and the model has no text_layout"):
        SnapGenPipeline.from_pretrained(tmp_path, text_encoder=None, tokenizer=None)
    with pytest.raises(ValueError, match="give states of width 20, the UNet reads 32: one is absent"):
        SnapGenPipeline.from_pretrained(tmp_path, text_encoder_3=None, tokenizer_3=None)


def test_any_of_the_text_encoders_can_be_left_out(pipeline: SnapGenPipeline, several: SnapGenPipeline) -> None:
    assert several.text_encoders == ["text_encoder", "text_encoder_2", "text_encoder_3"]
    text = several.encode_text("a cat", ["text_encoder", "text_encoder_3"])
    joint = several.joint_text_encoder()
    expected = joint(["a cat"], torch.tensor([[False, True, False]]))
    assert text.states.shape == (1, 16 + 10, 32) and joint.encoders["text_encoder_3"].prefix == "two "
    assert torch.equal(text.states, expected.states) and torch.equal(text.mask, expected.mask)
    everyone = draw(several, "a cat", guidance_scale=1.0)
    assert torch.equal(draw(several, "a cat", guidance_scale=1.0, text_encoders=several.text_encoders), everyone)
    without = draw(several, "a cat", guidance_scale=1.0, text_encoders=["text_encoder_2"])
    assert (without - everyone).abs().max() > 0
    for wrong in ([], ["gemma"], "text_encoder"):
        with pytest.raises(ValueError, match="text_encoders is .*, expected some of text_encoder .*, text_encoder_2"):
            draw(several, "a cat", text_encoders=wrong)
    with pytest.raises(ValueError, match=r"text_encoder \(CLIPTextModel\), the only one of this model"):
        draw(pipeline, "a cat", text_encoders=["text_encoder_3"])


def missing(path: Path) -> None:
    path.unlink()


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def misshapen(path: Path) -> None:
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if tensor.ndim > 1)
    save_file(tensors | {name: torch.zeros(3, 1, 4)}, path)


@pytest.mark.parametrize("damage", [missing, truncated, misshapen])
@pytest.mark.parametrize("part", ["unet", "vae"])
def test_a_damaged_folder_does_not_load(
    tiny_model: Path, tmp_path: Path, damage: Callable[[Path], None], part: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    damage(folder / part / "diffusion_pytorch_model.safetensors")
    with pytest.raises((OSError, ValueError, RuntimeError, SafetensorError)):
        SnapGenPipeline.from_pretrained(folder)


def test_no_bundled_weights_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snapgen.pipeline.bundled.files", lambda package: tmp_path)
    with pytest.raises(FileNotFoundError, match="the package has no bundled weights in .*; name a model folder"):
        SnapGenPipeline.bundled()


def test_the_bundled_models_share_all_but_the_unet() -> None:
    few, base = SnapGenPipeline.bundled(), SnapGenPipeline.bundled("mini-base")
    assert (few.config.default_num_inference_steps, few.config.default_guidance_scale) == (4, 1.0)
    assert (base.config.default_num_inference_steps, base.config.default_guidance_scale) == (28, 4.0)
    for part in ("text_encoder", "vae"):
        assert network_hash({part: getattr(few, part)}) == network_hash({part: getattr(base, part)})
        assert not (bundled_folder() / BUNDLED["mini"] / part).exists()  # it ships once
    assert network_hash({"unet": few.unet}) != network_hash({"unet": base.unet})
    assert all(part.dtype == torch.float32 for part in (few.unet, few.vae, few.text_encoder))
    with pytest.raises(ValueError, match="there is no bundled model 'micro': use mini or mini-base"):
        SnapGenPipeline.bundled("micro")


# What `optimize` turns on.
def test_optimized_pictures_differ_by_rounding(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = SnapGenPipeline.from_pretrained(tiny_model)
    expected = draw(plain, "a cat", num_inference_steps=4)
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(
            "snapgen.pipeline.components.gains_by_bfloat16", lambda device, dtype=dtype: dtype == torch.bfloat16
        )
        fast = SnapGenPipeline.from_pretrained(tiny_model).optimize()
        assert fast.unet.dtype == fast.vae.dtype == dtype
        pointwise = fast.vae.decoder.conv_out[1].weight
        assert pointwise.is_contiguous(memory_format=torch.channels_last)
        picture = draw(fast, "a cat", num_inference_steps=4)
        assert (picture - expected).abs().max() < (1e-4 if dtype == torch.float32 else 0.05)
        assert dtype == torch.float32 or not torch.equal(picture, expected)


@pytest.mark.slow
def test_compiled_as_whole_graphs(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the backend that runs graphs as they are: what is tested is that there is one graph, traced once."""
    monkeypatch.setattr("snapgen.pipeline.components.gains_by_bfloat16", lambda device: False)
    graphs = []

    def as_it_is(graph: Any, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module,
        "compile",
        lambda module, mode=None, **settings: compile_module(module, backend=as_it_is, **settings),
    )
    expected = draw(SnapGenPipeline.from_pretrained(tiny_model), "a cat", num_inference_steps=3)
    fast = SnapGenPipeline.from_pretrained(tiny_model).optimize(compile=True)
    torch.testing.assert_close(draw(fast, "a cat", num_inference_steps=3), expected, rtol=0, atol=1e-4)
    draw(fast, "two dogs on a blue background", num_inference_steps=2)
    assert len(graphs) == 2  # the UNet's and the decoder's
