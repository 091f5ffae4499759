"""SnapGenInpaintPipeline, the diffusers pipeline that repaints the masked part of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers import ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor

from snapgen.pipeline.denoising import Start
from snapgen.pipeline.image_to_image import SnapGenImg2ImgPipeline, check_pictures, repeat_for
from snapgen.pipeline.inputs import STRENGTH
from snapgen.pipeline.request import Callback, Generators, Request


class SnapGenInpaintPipeline(SnapGenImg2ImgPipeline):
    """Inpainting: image to image that, after every step, puts back the picture outside the mask.

    There the latents are `(1 - sigma) x_0 + sigma eps` (Eq. 1) at every level, and x_0 at the end: the picture as the
    autoencoder encodes and decodes it.
    """

    @torch.no_grad()
    def __call__(  # type: ignore[override]  # diffusers' order: picture and mask follow the prompt
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        mask_image: Any = None,
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
        """Repaint the masked part of a picture. The other arguments: `SnapGenImg2ImgPipeline` and `SnapGenPipeline`.

        Args:
            mask_image: one mask, or one for each prompt: white, or above 0.5, where to repaint; a PIL picture, an array
                (B) H W or tensor (B) (1) H W. It is resized to `width` and `height`, then to the latents.
            strength: the share of the steps that are taken; below 1, something of what is under the mask is kept.
        """
        return self._generate(Request(**{name: value for name, value in locals().items() if name != "self"}))

    def _check(self, request: Request) -> None:
        super()._check(request)
        check_pictures("mask_image", request.mask_image)

    def _start(self, request: Request, count: int, together: int) -> Start:
        return replace(super()._start(request, count, together), mask=self.prepare_mask(request, count))

    def prepare_mask(self, request: Request, count: int) -> torch.Tensor:
        """The request's mask at the latents' size, boolean, B 1 h w: True where to repaint."""
        factor = self.vae_scale_factor
        processor = VaeImageProcessor(
            vae_scale_factor=factor, do_normalize=False, do_binarize=True, do_convert_grayscale=True
        )
        mask = processor.preprocess(request.mask_image, request.height, request.width)
        size = (request.height // factor, request.width // factor)
        small = torch.nn.functional.interpolate(mask[:, :1].float(), size=size) > 0.5
        return repeat_for("mask_image", small, count, request.num_images_per_prompt).to(self._execution_device)
