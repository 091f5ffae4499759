"""SnapGenPipeline, the diffusers pipeline that turns prompts into pictures."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers import ImagePipelineOutput
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils.torch_utils import randn_tensor

from snapgen.flow.guidance import has_guidance
from snapgen.flow.schedule import TIMESTEP_SCALE, sampling_levels
from snapgen.flow.timesteps import shifted_schedule
from snapgen.models.denoiser import pooled_width, text_width
from snapgen.pipeline import inputs
from snapgen.pipeline.adapters import AdapterLoader
from snapgen.pipeline.components import SnapGenComponents
from snapgen.pipeline.conditioning import ProjectedText
from snapgen.pipeline.denoising import Start, Texts, denoise
from snapgen.pipeline.request import Callback, Generators, Request
from snapgen.pipeline.vae import decode
from snapgen.text.encoder import LANGUAGE_MAX_LENGTH, TextStates, is_clip
from snapgen.text.join import TEXT_ENCODERS, tokenizer_of


class SnapGenPipeline(SnapGenComponents, AdapterLoader):
    """Text to image with `SnapGenUNet` and `SnapGenAutoencoder`.

    One text encoder is enough (`text_encoder`, `tokenizer`). The full-size model joins up to three, as Stable
    Diffusion 3 does: CLIPs first, a language model last. Any of them may be absent (None): `text_layout` keeps the
    places of all in the joined states (`snapgen.text.join`), and an absent one contributes what the empty prompt does.

    Configuration: the `shift` of the noise levels that the UNet was trained with, the defaults of `guidance_scale` and
    `num_inference_steps`, the number of tokens from a language model (`language_max_length`), the instruction before
    every prompt to it (`language_prefix`), the `text_layout`, by default that of the given text encoders, and the only
    words that the model has learned, by kind (`known_words`), if they can be listed.
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->text_encoder_3->unet->vae"
    _optional_components = [part for name in TEXT_ENCODERS for part in (name, tokenizer_of(name))]
    _callback_tensor_inputs = ["latents", "prompt_embeds", "prompt_attention_mask"]

    # Attributes of the call in progress, with diffusers' names.
    @property
    def guidance_scale(self) -> float:
        """Guidance scale of the call in progress."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the call in progress is guided, and so evaluates the negative text too."""
        return has_guidance(self._guidance_scale)

    @property
    def num_timesteps(self) -> int:
        """Number of steps of the call in progress."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Set `_interrupt` in a callback to skip the remaining steps."""
        return self._interrupt

    def encode_text(
        self,
        prompt: str | list[str],
        text_encoders: Sequence[str] | None = None,
        max_sequence_length: int | None = None,
    ) -> TextStates:
        """Text states B N D of `prompt`, in the UNet's dtype (if there is a UNet), on the pipeline's device.

        text_encoders: names of those that read the prompt, by default all; see `__call__`.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not self.text_encoders:
            raise ValueError("this pipeline has no text encoder: give prompt_embeds, from another's encode_prompt")
        encoder = self.joint_text_encoder(max_sequence_length)
        chosen = self.text_encoders if text_encoders is None else text_encoders
        dropped = torch.tensor([[name not in chosen for name in self.text_encoders]])
        different = list(dict.fromkeys(prompts))
        parts = encoder(different, dropped, together=1).split(1)  # one by one, as `__call__` says
        text = TextStates.cat([parts[different.index(prompt)] for prompt in prompts])
        device = self._execution_device
        dtype = text.states.dtype if self.unet is None else self.unet.dtype
        return text.to(device, dtype)

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        device: torch.device | str | None = None,
        prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        text_encoders: Sequence[str] | None = None,
        max_sequence_length: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Text states B N D and masks B N of the prompts and, with guidance, of the negative ones: arguments of a call.

        The arguments are those of `__call__`. States that are given are returned, repeated `num_images_per_prompt`
        times. Needs neither UNet nor autoencoder.
        """
        if prompt_embeds is None:
            inputs.check_prompts(prompt, negative_prompt)
        device = torch.device(device) if device is not None else self._execution_device
        positive = (prompt, prompt_embeds, prompt_attention_mask)
        negative = (negative_prompt, negative_prompt_embeds, negative_prompt_attention_mask)
        reading = (text_encoders, max_sequence_length)
        texts = self._encode(positive, negative if do_classifier_free_guidance else None, reading)
        texts = texts.on(device, num_images_per_prompt)
        against = (None, None) if texts.negative is None else (texts.negative.states, texts.negative.mask)
        return texts.text.states, texts.text.mask, *against

    def _encode(
        self,
        positive: tuple[Any, torch.Tensor | None, torch.Tensor | None],
        negative: tuple[Any, torch.Tensor | None, torch.Tensor | None] | None,
        reading: tuple[Sequence[str] | None, int | None],
    ) -> Texts:
        """The texts of `positive` and, with guidance, of `negative`: prompts, or else their states and masks.

        reading: which text encoders read them, and how many tokens of a language model.
        """

        def given(embeds: torch.Tensor | None, mask: torch.Tensor | None) -> TextStates | None:
            if embeds is None or mask is None:
                return None
            if self.unet is not None and pooled_width(self.unet) is not None:
                raise ValueError("this UNet reads a pooled text vector, too: give prompts instead of prompt_embeds")
            return TextStates(embeds if self.unet is None else embeds.to(self.unet.dtype), mask.bool())

        text, against = given(*positive[1:]), given(*negative[1:]) if negative is not None else None
        prompts: list[str] = []
        negatives: list[str] = []
        if text is None:
            prompts = [positive[0]] if isinstance(positive[0], str) else list(positive[0])
        if negative is not None and against is None:
            count = len(prompts) if text is None else len(text.mask)
            negatives = negative[0] if isinstance(negative[0], list) else [negative[0] or ""] * count
        if prompts or negatives:  # both at once, so that each encoder is visited once
            parts = self.encode_text(prompts + negatives, *reading).split([len(prompts), len(negatives)])
            text = parts[0] if text is None else text
            against = parts[1] if negatives else against
        assert text is not None
        if negative is None or against is None:
            return Texts(text, None)
        if against.mask.shape != text.mask.shape:
            shapes = f"{tuple(against.mask.shape)}, those of prompt_embeds {tuple(text.mask.shape)}"
            raise ValueError(f"negative_prompt_embeds are of (texts, tokens) {shapes}: equal shapes expected")
        return Texts(text, against)

    def prepare_latents(
        self,
        count: int,
        height: int,
        width: int,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
    ) -> torch.Tensor:
        """The noise to start from, B C h w, fp32: `latents` if given, else sampled with `generator`."""
        device, factor = self._execution_device, self.vae_scale_factor
        shape = (count, self.unet.config.in_channels, height // factor, width // factor)
        if isinstance(generator, list) and len(generator) != count:
            raise ValueError(f"generator has {len(generator)} entries, expected one for each of {count} pictures")
        if latents is None:
            return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        if latents.shape != shape:
            raise ValueError(f"latents have shape {tuple(latents.shape)}, expected {shape}")
        return latents.to(device, torch.float32)

    def predict_velocity(self, x: torch.Tensor, sigma: float, text: ProjectedText) -> torch.Tensor:
        """The UNet's velocity B C h w, fp32, of the latents `x` (B C h w) at the noise level `sigma`."""
        timestep = torch.tensor(TIMESTEP_SCALE * sigma, device=x.device)
        return self.unet(x.to(self.unet.dtype), timestep, **text, return_dict=False)[0].float()

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
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
        """Generate `num_images_per_prompt` pictures for every prompt.

        On a CPU they are computed one by one: a batch is hardly faster there, and it would change the last bits of
        every picture, because the order in which a matrix product is summed depends on its size.

        Args:
            prompt: what to show; the empty prompt generates unconditionally.
            negative_prompt: what guidance steers away from; by default the empty prompt. Without guidance, as for
                few-step models, it has no effect and a warning says so.
            height, width: in pixels, multiples of 32; by default the size the UNet was trained for.
            num_inference_steps: Euler steps, 1 to 1000; by default the pipeline's.
            guidance_scale: up to 1 there is no guidance; by default the pipeline's.
            guidance_interval: lowest and highest sigma in [0, 1] at which guidance is on.
            generator: one for all pictures, or a list of one per picture (a picture then does not depend on the others
                in the batch).
            latents: the noise to start from, B C h w; by default it is sampled.
            output_type: "pil", "np" (B H W 3 in [0, 1]), "pt" (B 3 H W in [0, 1]) or "latent" (normalised).
            callback_on_step_end: called as `callback(pipeline, step, timestep, tensors)` after every step; returns a
                dictionary that may hold changed tensors. diffusers' official callbacks work.
            callback_on_step_end_tensor_inputs: which tensors it gets, of `latents`, `prompt_embeds` (with guidance, the
                negative texts and then the texts) and `prompt_attention_mask`; by default the latents.
            text_encoders: names of those that read the prompts, such as `["text_encoder", "text_encoder_3"]`; the
                others read the empty prompt, as in training, which drops each one independently. By default all.
            prompt_embeds, prompt_attention_mask: instead of `prompt`, what `encode_prompt` returned for it.
            negative_prompt_embeds, negative_prompt_attention_mask: likewise, instead of `negative_prompt`.
            sigmas: the falling noise levels of the steps instead of evenly spaced ones, in (0, 1]; the pipeline's
                `shift` is applied to them, as diffusers' scheduler does, and the step to 0 follows by itself.
            max_sequence_length: tokens that a language model reads; by default the pipeline's.

        Returns: `ImagePipelineOutput` with `images`, those of the first prompt first.
        """
        return self._generate(Request(**{name: value for name, value in locals().items() if name != "self"}))

    def _generate(self, request: Request) -> ImagePipelineOutput | tuple:
        # 1. Check the inputs; what is not given takes the model's own value.
        request = self._completed(request)
        self._check(request)
        self._warn(request)
        self._guidance_scale, self._interrupt = request.guidance_scale, False

        # 2. Encode the prompts, B N D; `together` pictures are computed at once.
        texts = self._texts(request)
        count = len(texts.text.states)
        together = 1 if self._execution_device.type == "cpu" else count

        # 3. Start from noise, B C h w, or from a picture.
        start = self._start(request, count, together)
        self._num_timesteps = len(start.sigmas) - 1

        # 4. Denoise: Euler steps along the guided velocity, from the first sigma to 0.
        latents = denoise(self, start, texts, together, request)

        # 5. Decode the latents into pictures, B 3 H W, and convert them.
        if request.output_type == "latent":
            images = latents
        else:
            decoded = decode(self.vae, latents, together)
            images = self.image_processor.postprocess(decoded, output_type=request.output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if request.return_dict else (images,)

    def _completed(self, request: Request) -> Request:
        """The request with the model's own values where it has none."""
        if self.unet is None:
            raise ValueError("this pipeline has no unet: it can only encode prompts")
        size = self.unet.config.sample_size * self.vae_scale_factor
        own = {
            "height": size,
            "width": size,
            "num_inference_steps": self.config.default_num_inference_steps,
            "guidance_scale": self.config.default_guidance_scale,
            "callback_on_step_end_tensor_inputs": ["latents"],
        }
        if request.sigmas is not None:
            sigmas = inputs.check_sigmas(request.sigmas, request.num_inference_steps)
            request = replace(request, sigmas=sigmas, num_inference_steps=len(sigmas))
        if isinstance(request.callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            own["callback_on_step_end_tensor_inputs"] = request.callback_on_step_end.tensor_inputs
        return replace(request, **{name: value for name, value in own.items() if getattr(request, name) is None})

    def _check(self, request: Request) -> None:
        """Raise ValueError naming the first input that cannot be used."""
        width, embeds, negative = text_width(self.unet), request.prompt_embeds, request.negative_prompt_embeds
        inputs.check_embeds("prompt_embeds", embeds, request.prompt_attention_mask, width)
        inputs.check_embeds("negative_prompt_embeds", negative, request.negative_prompt_attention_mask, width)
        inputs.check_prompts(request.prompt, request.negative_prompt, None if embeds is None else len(embeds))
        if negative is not None and request.negative_prompt is not None:
            raise ValueError("negative_prompt and negative_prompt_embeds are both given, expected one of them")
        inputs.check_size(request.height, request.width)
        inputs.check_sampling(
            request.num_inference_steps,
            request.guidance_scale,
            request.num_images_per_prompt,
            request.guidance_interval,
        )
        names = request.callback_on_step_end_tensor_inputs or []
        inputs.check_output(request.output_type, names, self._callback_tensor_inputs)
        if self.vae is None and request.output_type != "latent":
            raise ValueError(f"this pipeline has no vae: output_type is {request.output_type!r}, expected 'latent'")
        inputs.check_text_encoders(request.text_encoders, {name: getattr(self, name) for name in self.text_encoders})
        inputs.check_sequence_length(request.max_sequence_length, LANGUAGE_MAX_LENGTH)

    def _warn(self, request: Request) -> None:
        """Say what has no effect."""
        if request.negative_prompt and not has_guidance(request.guidance_scale):
            scale = f"guidance_scale is {request.guidance_scale:g}, there is no guidance"
            warnings.warn(f"negative_prompt has no effect: {scale}", stacklevel=5)
        encoders = [getattr(self, name) for name in self.text_encoders]
        if request.max_sequence_length is not None and all(map(is_clip, encoders)):
            warnings.warn("max_sequence_length has no effect: this pipeline has no language model", stacklevel=5)

    def _texts(self, request: Request) -> Texts:
        """What every picture shows, and with guidance what it does not."""
        negative = (
            request.negative_prompt,
            request.negative_prompt_embeds,
            request.negative_prompt_attention_mask,
        )
        return self._encode(
            (request.prompt, request.prompt_embeds, request.prompt_attention_mask),
            negative if self.do_classifier_free_guidance else None,
            (request.text_encoders, request.max_sequence_length),
        ).on(self._execution_device, request.num_images_per_prompt)

    def _schedule(self, request: Request) -> list[float]:
        """The noise levels of all steps, from the first to 0."""
        if request.sigmas is None:
            return sampling_levels(request.num_inference_steps, self.config.shift)
        return shifted_schedule(torch.tensor(request.sigmas, dtype=torch.float64), self.config.shift).tolist()

    def _start(self, request: Request, count: int, together: int) -> Start:
        """Noise, at the first level of the schedule."""
        noise = self.prepare_latents(count, request.height, request.width, request.generator, request.latents)
        return Start(noise, self._schedule(request), noise)
