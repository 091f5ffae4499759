"""Image to image and inpainting: the path of flow matching, diffusers' arguments, and what text to image gives."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting, AutoPipelineForText2Image
from PIL import Image
from support.drawing import draw, seeds

from snapgen.pipeline.image_to_image import SnapGenImg2ImgPipeline
from snapgen.pipeline.inpainting import SnapGenInpaintPipeline
from snapgen.pipeline.text_to_image import SnapGenPipeline

STEPS = {"num_inference_steps": 4, "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def text_to_image(tiny_model: Path) -> SnapGenPipeline:
    pipeline = SnapGenPipeline.from_pretrained(tiny_model)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sibling(pipeline: SnapGenPipeline, kind: Any) -> Any:
    found = kind.from_pipe(pipeline)
    found.set_progress_bar_config(disable=True)
    return found


@pytest.fixture(scope="module")
def img2img(text_to_image: SnapGenPipeline) -> SnapGenImg2ImgPipeline:
    return sibling(text_to_image, SnapGenImg2ImgPipeline)


@pytest.fixture(scope="module")
def inpaint(text_to_image: SnapGenPipeline) -> SnapGenInpaintPipeline:
    return sibling(text_to_image, SnapGenInpaintPipeline)


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def latents_of(pipeline: SnapGenPipeline, picture: Image.Image) -> torch.Tensor:
    x = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        return pipeline.vae.normalize(pipeline.vae.encode(x).latent_dist.mode())


def test_the_start_is_on_the_path_at_the_first_level_that_is_kept(
    img2img: SnapGenImg2ImgPipeline, picture: Image.Image
) -> None:
    """Shift 3, four steps: sigma 1, 0.9, 0.75, 0.5. Strength 0.5 takes the last two, from x = x_0 / 4 + 3 eps / 4."""
    noise = torch.randn(1, 16, 4, 4, generator=seeds(3)[0])
    x = 0.25 * latents_of(img2img, picture) + 0.75 * noise
    text = img2img.encode_text("a cat")
    with torch.no_grad():
        for sigma, following in ((0.75, 0.5), (0.5, 0.0)):
            v = img2img.unet(x, 1000 * sigma, text.states, text.mask, return_dict=False)[0]
            x = x + (following - sigma) * v
    times: list[float] = []
    settings = {"image": picture, "strength": 0.5, "num_inference_steps": 4, "guidance_scale": 1.0}
    found = draw(
        img2img,
        "a cat",
        seed=3,
        output_type="latent",
        callback_on_step_end=lambda pipe, step, timestep, tensors: times.append(timestep.item()),
        **settings,
    )
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-5)
    assert times == pytest.approx([750, 500]) and img2img.num_timesteps == 2


@pytest.mark.parametrize("strength", [1, 1.0])
def test_at_strength_1_it_is_text_to_image(
    text_to_image: SnapGenPipeline, img2img: SnapGenImg2ImgPipeline, picture: Image.Image, strength: float
) -> None:
    expected = draw(text_to_image, "a cat", **STEPS)
    assert torch.equal(draw(img2img, "a cat", image=picture, strength=strength, **STEPS), expected)
    assert not torch.equal(draw(img2img, "a cat", image=picture, strength=0.75, **STEPS), expected)


@pytest.mark.parametrize(("strength", "steps"), [(0.6, 17), (0.35, 10), (0.999, 28), (0.04, 2)])
def test_steps_are_counted_as_in_diffusers(
    img2img: SnapGenImg2ImgPipeline, picture: Image.Image, strength: float, steps: int
) -> None:
    """int(28 - min(28 * strength, 28)) are skipped (`StableDiffusion3Img2ImgPipeline.get_timesteps`)."""
    draw(img2img, "a cat", image=picture, strength=strength, num_inference_steps=28, guidance_scale=1.0)
    assert img2img.num_timesteps == steps


def test_pictures_of_any_kind_and_latents(img2img: SnapGenImg2ImgPipeline, picture: Image.Image) -> None:
    expected = draw(img2img, "a cat", image=picture, **STEPS)
    array = np.asarray(picture, dtype=np.float32) / 255
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    for same in ([picture], array, array[None], [array], tensor, tensor[None], [tensor], picture.convert("RGBA")):
        torch.testing.assert_close(draw(img2img, "a cat", image=same, **STEPS), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(draw(img2img, "a cat", image=latents_of(img2img, picture), **STEPS), expected)
    large = draw(img2img, "a cat", image=picture, height=64, width=96, **STEPS)
    assert large.shape == (1, 3, 64, 96)


def test_one_picture_for_all_or_one_for_each(img2img: SnapGenImg2ImgPipeline, picture: Image.Image) -> None:
    other = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    prompts = ["a cat", "a dog"]
    both = draw(img2img, prompts, image=[picture, other], num_images_per_prompt=2, **STEPS)
    for index, (prompt, image) in enumerate(zip(prompts, (picture, other), strict=True)):
        for k in (0, 1):
            alone = draw(img2img, prompt, seed=2 * index + k, image=image, **STEPS)
            assert torch.equal(alone[0], both[2 * index + k])
    same = draw(img2img, prompts, image=picture, **STEPS)
    assert torch.equal(draw(img2img, "a dog", seed=1, image=picture, **STEPS)[0], same[1])
    with pytest.raises(ValueError, match="^image holds 3 pictures, expected 1 or one for each of 2 prompts"):
        draw(img2img, prompts, image=[picture] * 3, **STEPS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": None}, "image is NoneType, expected a PIL picture, an array, a tensor, or a list of these"),
        ({"image": "cat.png"}, "image is str, expected"),
        ({"image": []}, "image is an empty list, expected"),
        ({"image": np.full((32, 32, 3), 255, dtype=np.uint8)}, "image is of uint8, expected floating-point numbers"),
        (
            {"image": torch.zeros(3, 32, 32, dtype=torch.long)},
            "image is of torch.int64, expected floating-point numbers",
        ),
        ({"image": np.full((32, 32, 3), 255.0)}, r"image has values outside of \[0, 1\]"),
        ({"image": torch.zeros(1, 16, 8, 8)}, r"image holds latents of shape \(16, 8, 8\), expected \(16, 4, 4\)"),
        ({"strength": -0.1}, "strength is -0.1, expected 0 to 1"),
        ({"strength": 1.5}, "strength is 1.5"),
        ({"strength": True}, "strength is True"),
        ({"strength": float("nan")}, "strength is nan"),
        ({"strength": 0.0}, "strength 0.0 leaves none of 4 steps: raise it, or num_inference_steps"),
    ],
)
def test_bad_arguments_are_named(
    img2img: SnapGenImg2ImgPipeline, picture: Image.Image, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        img2img("a cat", **{"image": picture} | STEPS | arguments)


def test_a_vae_that_cannot_encode_is_one_line(text_to_image: SnapGenPipeline, picture: Image.Image) -> None:
    alone = sibling(text_to_image, SnapGenImg2ImgPipeline)
    alone.vae = None
    latents = latents_of(text_to_image, picture)
    assert draw(alone, "a cat", image=latents, output_type="latent", **STEPS).shape == (1, 16, 4, 4)
    with pytest.raises(ValueError, match="^image is a picture, but this pipeline's vae has no encoder: give latents"):
        draw(alone, "a cat", image=picture, output_type="latent", **STEPS)


# Inpainting


def test_outside_the_mask_the_picture_stays(
    img2img: SnapGenImg2ImgPipeline, inpaint: SnapGenInpaintPipeline, picture: Image.Image
) -> None:
    mask = np.zeros((32, 32), dtype=np.uint8)
    mask[:, 16:] = 255
    settings = {"image": picture, "strength": 1.0, "output_type": "latent"} | STEPS
    known = latents_of(inpaint, picture)
    levels: list[torch.Tensor] = []
    found = draw(
        inpaint,
        "a cat",
        mask_image=Image.fromarray(mask),
        callback_on_step_end=lambda pipe, step, timestep, tensors: levels.append(tensors["latents"]),
        **settings,
    )
    noise = torch.randn(1, 16, 4, 4, generator=seeds(0)[0])
    torch.testing.assert_close(found[..., :2], known[..., :2])
    for x, sigma in zip(levels, (0.9, 0.75, 0.5, 0.0), strict=True):
        torch.testing.assert_close(x[..., :2], ((1 - sigma) * known + sigma * noise)[..., :2])
    everywhere = draw(img2img, "a cat", **settings)
    assert (found[..., 2:] - known[..., 2:]).abs().max() > 0.1 and not torch.equal(found, everywhere)
    whole = draw(inpaint, "a cat", mask_image=np.ones((32, 32)), **settings)
    assert torch.equal(whole, everywhere)
    nothing = draw(inpaint, "a cat", mask_image=torch.zeros(1, 32, 32), **settings)
    torch.testing.assert_close(nothing, known)


def test_masks_are_checked(inpaint: SnapGenInpaintPipeline, picture: Image.Image) -> None:
    with pytest.raises(ValueError, match="^mask_image is NoneType, expected a PIL picture"):
        inpaint("a cat", image=picture, **STEPS)
    with pytest.raises(ValueError, match="^mask_image holds 2 pictures, expected 1 or one for each of 1 prompts"):
        inpaint("a cat", image=picture, mask_image=[picture, picture], **STEPS)


def test_siblings_share_their_components(text_to_image: SnapGenPipeline, tmp_path: Path) -> None:
    for auto, kind in (
        (AutoPipelineForImage2Image, SnapGenImg2ImgPipeline),
        (AutoPipelineForInpainting, SnapGenInpaintPipeline),
        (AutoPipelineForText2Image, SnapGenPipeline),
    ):
        for found in (auto.from_pipe(text_to_image), kind.from_pipe(sibling(text_to_image, SnapGenInpaintPipeline))):
            assert type(found) is kind
            assert found.unet is text_to_image.unet and found.vae is text_to_image.vae
            assert found.config.default_num_inference_steps == 2
    sibling(text_to_image, SnapGenImg2ImgPipeline).save_pretrained(tmp_path)
    assert type(AutoPipelineForText2Image.from_pretrained(tmp_path)) is SnapGenPipeline


def test_half_precision(tiny_model: Path, inpaint: SnapGenInpaintPipeline, picture: Image.Image) -> None:
    half = SnapGenInpaintPipeline.from_pretrained(tiny_model, dtype=torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    settings = {"image": picture, "mask_image": picture.convert("L"), "strength": 0.75} | STEPS
    assert (draw(half, "a cat", **settings) - draw(inpaint, "a cat", **settings)).abs().mean() < 0.05
