"""SnapGenImg2ImgPipeline, the diffusers pipeline that turns a picture and a prompt into a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from diffusers import ImagePipelineOutput
from PIL.Image import Image

from snapgen.flow.path import interpolate
from snapgen.pipeline.denoising import Start
from snapgen.pipeline.inputs import STRENGTH, check_strength, skipped_steps
from snapgen.pipeline.request import Callback, Generators, Request
from snapgen.pipeline.text_to_image import SnapGenPipeline
from snapgen.pipeline.vae import encode

PICTURE_TYPES = (Image, np.ndarray, torch.Tensor)


class SnapGenImg2ImgPipeline(SnapGenPipeline):
    """Image to image: text to image that starts from a noisy picture instead of pure noise (Meng et al. 2022, SDEdit).

    Of the steps, it takes the last share, `strength`; it starts at the first level sigma of these, from
    `(1 - sigma) x_0 + sigma eps`, the path of training (Eq. 1), with x_0 the picture's latents.
    """

    @torch.no_grad()
    def __call__(  # type: ignore[override]  # diffusers' order: the picture follows the prompt
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        strength: float = STRENGTH,
        negative_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        text_encoders: Sequence[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        sigmas: Sequence[float] | None = None,
        max_sequence_length: int | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Change a picture, or one for each prompt, as the prompt says. The other arguments: `SnapGenPipeline`.

        Args:
            image: a PIL picture, an array (B) H W 3 or tensor (B) 3 H W in [0, 1], a list of these, or latents B C h w
                as `output_type="latent"` returns them. Pictures are resized to `width` and `height`.
            strength: the share of the steps that are taken, up to 1: nothing of the picture is kept.
        """
        return self._generate(Request(**{name: value for name, value in locals().items() if name != "self"}))

    def _check(self, request: Request) -> None:
        super()._check(request)
        check_strength(request.strength, request.num_inference_steps)
        check_pictures("image", request.image)

    def _start(self, request: Request, count: int, together: int) -> Start:
        """The picture's latents, and noise, mixed for the first level that is visited."""
        start = super()._start(request, count, together)
        sigmas = start.sigmas[skipped_steps(request.num_inference_steps, request.strength) :]
        x0 = self.prepare_image_latents(request, count, together)
        sigma = torch.tensor(sigmas[:1], device=x0.device)
        return replace(start, latents=interpolate(x0, start.noise, sigma), sigmas=sigmas, x0=x0)

    def prepare_image_latents(self, request: Request, count: int, together: int) -> torch.Tensor:
        """The latents of diffusion, B C h w, fp32, of the request's `image`."""
        device, size = self._execution_device, (request.height, request.width)
        channels = self.unet.config.in_channels
        image = request.image
        if isinstance(image, torch.Tensor) and image.ndim == 4 and image.shape[1] == channels:
            expected = (channels, *(length // self.vae_scale_factor for length in size))
            if image.shape[1:] != expected:
                raise ValueError(f"image holds latents of shape {tuple(image.shape[1:])}, expected {expected}")
            latents = image.to(device, torch.float32)
        else:
            if getattr(self.vae, "encoder", None) is None:
                raise ValueError("image is a picture, but this pipeline's vae has no encoder: give latents B C h w")
            pictures = self.image_processor.preprocess(image, *size).to(device, torch.float32)
            if pictures.abs().max() > 1:
                raise ValueError("image has values outside of [0, 1]: arrays and tensors of that range are expected")
            latents = encode(self.vae, pictures, together)
        return repeat_for("image", latents, count, request.num_images_per_prompt)


def check_pictures(name: str, pictures: Any) -> None:
    """Raise ValueError unless `pictures`, the argument `name`, are of a kind that diffusers' image processors take."""
    listed = pictures if isinstance(pictures, list) else [pictures]
    if not listed or not all(isinstance(picture, PICTURE_TYPES) for picture in listed):
        kinds = ", ".join(sorted({type(picture).__name__ for picture in listed})) or "an empty list"
        raise ValueError(f"{name} is {kinds}, expected a PIL picture, an array, a tensor, or a list of these")
    for picture in listed:
        if "float" not in str(getattr(picture, "dtype", "float")):
            raise ValueError(f"{name} is of {picture.dtype}, expected floating-point numbers in [0, 1]")


def repeat_for(name: str, pictures: torch.Tensor, count: int, each: int) -> torch.Tensor:
    """`pictures`, the argument `name`, for `count` results: one for all of them, or each for `each` in a row."""
    if len(pictures) == 1:
        return pictures.repeat(count, 1, 1, 1)
    if len(pictures) * each != count:
        raise ValueError(
            f"{name} holds {len(pictures)} pictures, expected 1 or one for each of {count // each} prompts"
        )
    return pictures.repeat_interleave(each, dim=0)
