"""What users of diffusers expect of any pipeline, by tiny real components: see docs/diffusers.md."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback, SDCFGCutoffCallback
from support.drawing import draw, seeds

from snapgen.flow.schedule import sampling_levels
from snapgen.pipeline.load import load_pipeline
from snapgen.pipeline.text_to_image import SnapGenPipeline
from snapgen.text.load import load_text_encoders

PROMPTS = ["a cat", "two red apples"]
EMBEDS = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")


@pytest.fixture(scope="module")
def pipeline(tiny_model: Path) -> SnapGenPipeline:
    pipeline = SnapGenPipeline.from_pretrained(tiny_model)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def own(tiny_model: Path) -> SnapGenPipeline:
    """One to change."""
    pipeline = SnapGenPipeline.from_pretrained(tiny_model)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def without_text(pipeline: SnapGenPipeline) -> SnapGenPipeline:
    bare = SnapGenPipeline(pipeline.unet, pipeline.vae, None, None, default_num_inference_steps=2)
    bare.set_progress_bar_config(disable=True)
    return bare


# Embeddings


@pytest.mark.parametrize("scale", [4.0, 1.0])
def test_what_encode_prompt_returns_can_be_given_back(pipeline: SnapGenPipeline, scale: float) -> None:
    """Encoded by a pipeline that is text encoders alone, sampled by one that has none: the same to the bit."""
    negative = "a dog" if scale > 1 else None
    expected = draw(pipeline, PROMPTS, negative_prompt=negative, guidance_scale=scale, num_images_per_prompt=2)
    alone = SnapGenPipeline(None, None, pipeline.text_encoder, pipeline.tokenizer)
    found = alone.encode_prompt(PROMPTS, do_classifier_free_guidance=scale > 1, negative_prompt=negative)
    embeds = dict(zip(EMBEDS, found, strict=True))
    assert all((embeds[name] is None) == (scale == 1.0) for name in EMBEDS[2:])
    drawn = draw(without_text(pipeline), None, guidance_scale=scale, num_images_per_prompt=2, **embeds)
    assert torch.equal(drawn, expected)


def test_embeddings_may_be_mixed_with_prompts(pipeline: SnapGenPipeline) -> None:
    expected = draw(pipeline, "a cat", negative_prompt="a dog")
    embeds = dict(zip(EMBEDS, pipeline.encode_prompt("a cat", negative_prompt="a dog"), strict=True))
    positive, negative = ({name: embeds[name] for name in part} for part in (EMBEDS[:2], EMBEDS[2:]))
    assert torch.equal(draw(pipeline, None, negative_prompt="a dog", **positive), expected)
    assert torch.equal(draw(pipeline, "a cat", **negative), expected)


def test_embeddings_that_do_not_fit_are_refused(pipeline: SnapGenPipeline) -> None:
    given = dict(zip(EMBEDS, pipeline.encode_prompt("a cat"), strict=True))
    states, mask = given["prompt_embeds"], given["prompt_attention_mask"]
    assert states is not None and mask is not None
    for change, message in (
        ({"prompt": "a cat"}, "prompt and prompt_embeds are both given"),
        ({"negative_prompt": "a dog"}, "negative_prompt and negative_prompt_embeds are both given"),
        ({"prompt_attention_mask": None}, "prompt_embeds and prompt_attention_mask belong together"),
        ({"negative_prompt_embeds": None}, "negative_prompt_embeds and negative_prompt_attention_mask belong together"),
        ({"prompt_embeds": states[..., :-1]}, r"prompt_embeds has shape \(1, 16, 31\), expected \(texts, tokens, 32\)"),
        ({"prompt_embeds": states[0]}, r"prompt_embeds has shape \(16, 32\)"),
        ({"prompt_attention_mask": mask[:, 1:]}, r"prompt_attention_mask has shape \(1, 15\), expected \(1, 16\)"),
        ({"prompt_attention_mask": mask & False}, "prompt_attention_mask hides all tokens of a text"),
        (
            {name: given[name][:, 1:] for name in EMBEDS[:2]},
            r"negative_prompt_embeds are of \(texts, tokens\) \(1, 16\)",
        ),
        ({name: given[name].repeat(2, *[1] * (given[name].ndim - 1)) for name in EMBEDS[:2]}, "negative_prompt_embeds"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            pipeline(**given | change)
    with pytest.raises(ValueError, match="^this pipeline has no text encoder: give prompt_embeds"):
        without_text(pipeline)("a cat")
    with pytest.raises(ValueError, match="^this pipeline has no text encoder"):  # for the negative prompt
        without_text(pipeline)(**{name: given[name] for name in EMBEDS[:2]})


def test_max_sequence_length(own: SnapGenPipeline, text_models: list[str]) -> None:
    several = SnapGenPipeline(own.unet, own.vae, **load_text_encoders(text_models, torch.float32))
    assert [several.encode_prompt("a cat", max_sequence_length=n)[0].shape[1] for n in (None, 5, 12)] == [32, 21, 28]
    two = {"num_inference_steps": 1, "guidance_scale": 1.0}
    long = "a dog on a blue background"
    with pytest.warns(UserWarning, match="the text encoder reads the first 4"):
        cut = draw(several, long, **two, max_sequence_length=4)
    assert not torch.equal(cut, draw(several, long, **two))
    for wrong in (0, 301, True, 4.0):
        with pytest.raises(ValueError, match=f"^max_sequence_length is {wrong}, expected 1 to 300 tokens"):
            draw(several, long, max_sequence_length=wrong)
    with pytest.warns(UserWarning, match="max_sequence_length has no effect: this pipeline has no language model"):
        draw(own, "a cat", max_sequence_length=8)


# Noise levels


def test_sigmas_are_those_of_diffusers_scheduler(pipeline: SnapGenPipeline) -> None:
    """And its steps give our latents."""
    sigmas, noise = [1.0, 0.7, 0.2], torch.randn(1, 16, 4, 4, generator=seeds(5)[0])
    times: list[float] = []
    found = draw(
        pipeline,
        "a cat",
        latents=noise,
        sigmas=sigmas,
        guidance_scale=1.0,
        output_type="latent",
        callback_on_step_end=lambda pipe, step, timestep, tensors: times.append(timestep.item()) or tensors,
    )
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(sigmas=sigmas)
    assert times == pytest.approx(scheduler.timesteps.tolist()) and pipeline.num_timesteps == 3
    text, x = pipeline.encode_text("a cat"), noise
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            x = scheduler.step(pipeline.unet(x, timestep, text.states, text.mask).sample, timestep, x).prev_sample
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("as_given", [list, tuple, np.array, torch.tensor])
def test_evenly_spaced_sigmas_are_the_default(pipeline: SnapGenPipeline, as_given: Any) -> None:
    expected = draw(pipeline, "a cat", num_inference_steps=4)
    assert torch.equal(draw(pipeline, "a cat", sigmas=as_given([1.0, 0.75, 0.5, 0.25])), expected)
    assert torch.equal(
        draw(pipeline, "a cat", sigmas=as_given([1.0, 0.75, 0.5, 0.25]), num_inference_steps=4), expected
    )


@pytest.mark.parametrize(
    "sigmas", [[], 0.5, "1", [0.5, 1.0], [1.0, 1.0], [1.0, 0.0], [1.5], [float("nan")], [True], [[1]]]
)
def test_sigmas_that_are_no_schedule_are_refused(pipeline: SnapGenPipeline, sigmas: Any) -> None:
    with pytest.raises(ValueError, match="^sigmas is .*, expected"):
        pipeline("a cat", sigmas=sigmas)


def test_sigmas_of_another_length_than_the_steps_are_refused(pipeline: SnapGenPipeline) -> None:
    with pytest.raises(ValueError, match="^num_inference_steps is 3, but sigmas has 2 levels"):
        pipeline("a cat", sigmas=[1.0, 0.5], num_inference_steps=3)


def test_the_scheduler_is_a_view_of_the_shift(own: SnapGenPipeline) -> None:
    own.scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 8, 8))  # of one that is not kept
    scheduler = own.scheduler
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 8, 8))
    torch.testing.assert_close(scheduler.sigmas, torch.tensor(sampling_levels(8, own.config.shift)))
    own.scheduler = FlowMatchEulerDiscreteScheduler.from_config(own.scheduler.config, shift=5.0)
    assert own.config.shift == own.scheduler.shift == 5.0
    with pytest.raises(ValueError, match="^scheduler is a FlowMatchHeunDiscreteScheduler, expected FlowMatchEuler"):
        own.scheduler = FlowMatchHeunDiscreteScheduler()
    with pytest.raises(ValueError, match="^scheduler has use_dynamic_shifting=True, expected False"):
        own.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    assert "scheduler" not in own.components and own.config.shift == 5.0


# Callbacks


@pytest.mark.parametrize("prompts", ["a cat", PROMPTS])
def test_the_official_cutoff_turns_guidance_off(pipeline: SnapGenPipeline, prompts: Any) -> None:
    """After the first of three steps, at sigma 1, 6/7 and 3/5: as a guidance interval that ends above 6/7."""
    cutoff = SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=0)
    expected = draw(pipeline, prompts, num_inference_steps=3, guidance_interval=(0.9, 1.0))
    assert torch.equal(draw(pipeline, prompts, num_inference_steps=3, callback_on_step_end=cutoff), expected)
    assert pipeline.guidance_scale == 0.0 and not pipeline.do_classifier_free_guidance
    both = MultiPipelineCallbacks([cutoff, cutoff])
    assert torch.equal(draw(pipeline, prompts, num_inference_steps=3, callback_on_step_end=both), expected)
    half = SDCFGCutoffCallback(cutoff_step_ratio=0.5)  # step 1 of 3
    later = draw(pipeline, prompts, num_inference_steps=3, callback_on_step_end=half)
    assert torch.equal(later, draw(pipeline, prompts, num_inference_steps=3, guidance_interval=(0.7, 1.0)))


class Swap(PipelineCallback):
    """Puts other texts in place after the first step."""

    tensor_inputs = ["prompt_embeds", "prompt_attention_mask"]

    def callback_fn(self, pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return dict(zip(self.tensor_inputs, self.texts, strict=True)) if step == 0 else tensors


def test_a_callback_may_change_the_texts(pipeline: SnapGenPipeline) -> None:
    states, mask, negative, negative_mask = pipeline.encode_prompt("a dog", negative_prompt="a cat")
    first: list[torch.Tensor] = []
    swap = Swap()
    drawn = {}
    for name, texts in (
        ("the texts", (states, mask)),
        ("all", (torch.cat([negative, states]), torch.cat([negative_mask, mask]))),
    ):
        swap.texts = texts
        drawn[name] = draw(pipeline, "two red apples", callback_on_step_end=swap)

    def keep(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> None:
        first.append(tensors["latents"])

    draw(pipeline, "two red apples", callback_on_step_end=keep)

    def replace(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": first[0]} if step == 0 else tensors

    assert torch.equal(draw(pipeline, "a dog", callback_on_step_end=replace), drawn["the texts"])
    assert torch.equal(draw(pipeline, "a dog", negative_prompt="a cat", callback_on_step_end=replace), drawn["all"])


def test_what_callbacks_cannot_do_is_one_line(pipeline: SnapGenPipeline) -> None:
    def guide(pipe: SnapGenPipeline, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = 4.0
        return tensors

    def shorten(pipe: SnapGenPipeline, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"prompt_embeds": tensors["prompt_embeds"][:, :3]}

    with pytest.raises(ValueError, match="^the callback turned guidance on, but the call began without"):
        draw(pipeline, "a cat", guidance_scale=1.0, callback_on_step_end=guide)
    with pytest.raises(ValueError, match=r"^the callback returned prompt_embeds of shape \(2, 3, 32\) and"):
        draw(pipeline, "a cat", callback_on_step_end=shorten, callback_on_step_end_tensor_inputs=["prompt_embeds"])


# Guidance and plain arguments


def test_up_to_1_there_is_no_guidance_and_no_negative_prompt(
    pipeline: SnapGenPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[Any] = []
    encode = pipeline.encode_text
    monkeypatch.setattr(pipeline, "encode_text", lambda prompt, *rest: encoded.append(prompt) or encode(prompt, *rest))
    expected = draw(pipeline, "a cat", guidance_scale=1.0)
    for scale in (0, 0.0, 0.5, 1):
        assert torch.equal(draw(pipeline, "a cat", guidance_scale=scale), expected)
        assert not pipeline.do_classifier_free_guidance
    with pytest.warns(UserWarning, match="negative_prompt has no effect: guidance_scale is 0.5, there is no guidance"):
        draw(pipeline, "a cat", guidance_scale=0.5, negative_prompt="a dog")
    assert encoded == [["a cat"]] * 6
    draw(pipeline, "a cat", guidance_scale=1.5)
    assert encoded[6:] == [["a cat", ""]]


@pytest.mark.parametrize("interval", [0.5, None, "ab", (True, 1), (0.2,), (float("nan"), 1)])
def test_an_interval_is_two_numbers(pipeline: SnapGenPipeline, interval: Any) -> None:
    with pytest.raises(ValueError, match="^guidance_interval is .*, expected \\(low, high\\), 0 <= low <= high <= 1"):
        pipeline("a cat", guidance_interval=interval)


@pytest.mark.parametrize(("prompt", "negative"), [(None, None), ([], None), ("a", ["b", "c"]), ("a", 3)])
def test_only_texts_are_encoded(pipeline: SnapGenPipeline, prompt: Any, negative: Any) -> None:
    with pytest.raises(ValueError, match="prompt is "):
        pipeline.encode_prompt(prompt, negative_prompt=negative)


@pytest.mark.parametrize(
    "name", ["num_inference_steps", "num_images_per_prompt", "height", "width", "guidance_scale", "max_sequence_length"]
)
def test_true_is_no_number(pipeline: SnapGenPipeline, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} is True, expected"):
        pipeline("a cat", **{name: True})


# Autoencoders


def test_without_an_autoencoder_latents_come_out(pipeline: SnapGenPipeline) -> None:
    bare = SnapGenPipeline(
        pipeline.unet, None, pipeline.text_encoder, pipeline.tokenizer, default_num_inference_steps=2
    )
    expected = draw(pipeline, "a cat", output_type="latent")
    assert torch.equal(draw(bare, "a cat", output_type="latent"), expected)
    with pytest.raises(ValueError, match="^this pipeline has no vae: output_type is 'pil', expected 'latent'"):
        bare("a cat")


def kl_autoencoder(channels: int = 16, blocks: int = 4, **settings: Any) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * blocks,
        up_block_types=["UpDecoderBlock2D"] * blocks,
        block_out_channels=[8] * blocks,
        norm_num_groups=4,
        latent_channels=channels,
        **{"scaling_factor": 1.0, "shift_factor": None} | settings,
    ).eval()


def tiny_autoencoder(channels: int = 16) -> AutoencoderTiny:
    torch.manual_seed(0)
    widths = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    return AutoencoderTiny(latent_channels=channels, **widths).eval()


@torch.no_grad()
def test_diffusers_autoencoders_of_the_same_latents_decode(own: SnapGenPipeline, tiny_model: Path) -> None:
    latents = draw(own, "a cat", output_type="latent")
    sd3 = {"scaling_factor": 1.5305, "shift_factor": 0.0609}
    for vae, z in (
        (kl_autoencoder(), latents),
        (tiny_autoencoder(), latents),  # takes the latents of diffusion, whatever the scale of those it was made for
        (kl_autoencoder(**sd3), latents / 1.5305 + 0.0609),
    ):
        expected = (vae.decode(z).sample / 2 + 0.5).clamp(0, 1)
        own.vae = vae
        torch.testing.assert_close(draw(own, "a cat"), expected)
        loaded = SnapGenPipeline.from_pretrained(tiny_model, vae=vae)
        loaded.set_progress_bar_config(disable=True)
        torch.testing.assert_close(draw(loaded, "a cat"), expected)
        assert type(SnapGenPipeline.from_pipe(own).vae) is type(vae)


def test_autoencoders_of_other_latents_are_refused(own: SnapGenPipeline) -> None:
    for vae, message in (
        (kl_autoencoder(channels=4), r"vae \(AutoencoderKL\) has 4 latent channels, the unet 16"),
        (tiny_autoencoder(channels=4), r"vae \(AutoencoderTiny\) has 4 latent channels, the unet 16"),
        (kl_autoencoder(blocks=3), r"vae \(AutoencoderKL\) has 4 pixels per latent position, the vae .* replaces 8"),
        (kl_autoencoder(latents_mean=[0.0] * 16), r"vae \(AutoencoderKL\) normalises each channel by itself"),
        (own.text_encoder, "vae is a CLIPTextModel, expected a SnapGenAutoencoder, AutoencoderKL or AutoencoderTiny"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            own.vae = vae
    with pytest.raises(ValueError, match="4 latent channels"):
        SnapGenPipeline(own.unet, kl_autoencoder(channels=4), own.text_encoder, own.tokenizer)
    with pytest.warns(
        UserWarning, match="has scaling_factor and shift_factor 0.3611 and 0.1159, .* replaces 1 and 0: "
    ):
        own.vae = kl_autoencoder(scaling_factor=0.3611, shift_factor=0.1159)


def test_tiling_and_slicing_of_the_autoencoder(own: SnapGenPipeline) -> None:
    whole = draw(own, PROMPTS, height=96, width=160)
    own.vae.tile_sample_min_size = 64
    own.enable_vae_tiling()
    own.enable_vae_slicing()
    tiled = draw(own, PROMPTS, height=96, width=160)
    assert (
        not torch.equal(tiled, whole) and (tiled - whole).square().mean() < 3e-3
    )  # random weights; see test_tiling.py
    own.disable_vae_tiling()
    assert torch.equal(draw(own, PROMPTS, height=96, width=160), whole)
    own.disable_vae_slicing()
    assert not own.vae.use_slicing


# Folders


@pytest.mark.parametrize("absent", [("vae",), ("text_encoder", "tokenizer"), ("unet", "vae")])
def test_absent_components_stay_absent(own: SnapGenPipeline, absent: tuple[str, ...], tmp_path: Path) -> None:
    for name in absent:
        setattr(own, name, None)
    own.save_pretrained(tmp_path)
    loaded = SnapGenPipeline.from_pretrained(tmp_path)
    assert {name for name in ("unet", "vae", "text_encoder", "tokenizer") if getattr(loaded, name) is None} == set(
        absent
    )
    assert loaded.config.default_num_inference_steps == 2


def test_a_folder_that_holds_a_variant_alone(tiny_model: Path, tmp_path: Path) -> None:
    half = SnapGenPipeline.from_pretrained(tiny_model, dtype=torch.float16)
    half.save_pretrained(tmp_path / "half", variant="fp16")
    assert not list((tmp_path / "half").rglob("diffusion_pytorch_model.safetensors"))
    shutil.copytree(tmp_path / "half", tmp_path / "plain")
    for file in (tmp_path / "plain").rglob("*.fp16.safetensors"):
        file.rename(file.with_name(file.name.replace(".fp16", "")))
    pictures = []
    for folder in ("half", "plain"):
        loaded = SnapGenPipeline.from_pretrained(tmp_path / folder, dtype=torch.float32)
        loaded.set_progress_bar_config(disable=True)
        pictures += [draw(loaded, "a cat"), draw(load_pipeline(str(tmp_path / folder)).to("cpu"), "a cat")]
    assert all(torch.equal(picture, pictures[0]) for picture in pictures)


def test_casts_and_copies_keep_the_pipeline_whole(own: SnapGenPipeline) -> None:
    expected = draw(own, "a cat")
    again = SnapGenPipeline(**own.components, default_num_inference_steps=2)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(draw(again, "a cat"), expected)
    own.to(torch.bfloat16)
    assert own.dtype == own.unet.dtype == own.vae.dtype == own.text_encoder.dtype == torch.bfloat16
    assert (draw(own, "a cat") - expected).abs().mean() < 0.03
    assert own.to("cpu", torch.float32).device.type == "cpu"
