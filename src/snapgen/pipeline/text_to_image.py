"""SnapGenPipeline: from prompts to pictures, as a diffusers pipeline."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from numbers import Integral, Real
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils.torch_utils import randn_tensor

from snapgen.flow.guidance import Velocity, conditional, guided
from snapgen.flow.sampling import euler
from snapgen.flow.timesteps import TIMESTEP_SCALE, sampling_sigmas
from snapgen.machine.memory import keep_freed_memory
from snapgen.machine.precision import gains_by_bfloat16
from snapgen.models.autoencoder import SnapGenAutoencoder
from snapgen.models.unet import SnapGenUNet
from snapgen.pipeline.bundled import BUNDLED, bundled_folder
from snapgen.text.encoder import LANGUAGE_MAX_LENGTH, TextStates
from snapgen.text.join import TEXT_ENCODERS, JointTextEncoder

SIZE_MULTIPLE = 32  # pixels; the autoencoder divides by 8, the full-size UNet by 4
MAX_SIZE = 4096
MAX_STEPS = 1000
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class SnapGenPipeline(DiffusionPipeline, StableDiffusionLoraLoaderMixin):
    """Text to image with `SnapGenUNet` and `SnapGenAutoencoder`.

    One text encoder is enough (`text_encoder`, `tokenizer`). The full-size model joins up to three as Stable
    Diffusion 3 does: CLIPs first, and a language model as the last.

    Configuration: `shift` of the noise levels (the one the UNet was trained with), the defaults of
    `guidance_scale` and `num_inference_steps`, and how many tokens a language model gives (`language_max_length`)
    under which instruction before every prompt (`language_prefix`).
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->text_encoder_3->unet->vae"
    _optional_components = ["text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3"]
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        unet: SnapGenUNet,
        vae: SnapGenAutoencoder,
        text_encoder: Any,
        tokenizer: Any,
        text_encoder_2: Any = None,
        tokenizer_2: Any = None,
        text_encoder_3: Any = None,
        tokenizer_3: Any = None,
        shift: float = 3.0,
        default_guidance_scale: float = 4.0,
        default_num_inference_steps: int = 28,
        language_max_length: int = LANGUAGE_MAX_LENGTH,
        language_prefix: str = "",
    ):
        super().__init__()
        self.register_modules(
            unet=unet,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
            text_encoder_3=text_encoder_3,
            tokenizer_3=tokenizer_3,
        )
        self.register_to_config(
            shift=shift,
            default_guidance_scale=default_guidance_scale,
            default_num_inference_steps=default_num_inference_steps,
            language_max_length=language_max_length,
            language_prefix=language_prefix,
        )
        factor = self.vae.spatial_factor if getattr(self, "vae", None) is not None else 8
        self.image_processor = VaeImageProcessor(vae_scale_factor=factor)

    @classmethod
    def bundled(cls, name: str = "mini") -> SnapGenPipeline:
        """A model that ships in the package, on the CPU in fp32.

        `mini` draws in four steps without guidance, `mini-base`, of which it was distilled, in 28 guided ones. They
        share everything but the UNet.
        """
        if name not in BUNDLED:
            raise ValueError(f"there is no bundled model '{name}': use {' or '.join(BUNDLED)}")
        base, settings = bundled_folder(), {"dtype": torch.float32, "local_files_only": True}
        if name == "mini-base":
            pipeline: SnapGenPipeline = cls.from_pretrained(base, **settings)
        else:
            shared = cls.from_pretrained(base, unet=None, **settings).components
            parts = {part: component for part, component in shared.items() if component is not None}
            pipeline = cls.from_pretrained(base / BUNDLED[name], **parts, **settings)
        return pipeline

    def optimize(self, compile: bool | None = None) -> SnapGenPipeline:
        """Turns on what makes drawing fast on the device that the pipeline is on, and returns the pipeline.

        UNet and autoencoder become channels-last, and bf16 where the processor gains by it. On a CPU the process
        keeps the memory of freed tensors from now on (`snapgen.machine.memory`). On a GPU the networks are compiled
        (whole graph, static shapes, CUDA graphs): the first picture of every size and batch then takes a
        minute or more. `compile` decides that otherwise. Pictures change by rounding; call it after `to(device)`.
        """
        device = self._execution_device
        if device.type == "cpu":
            keep_freed_memory()
        for network in (self.unet, self.vae):
            network.to(device, memory_format=torch.channels_last)
            if gains_by_bfloat16(device):
                network.bfloat16()
        if compile is None:
            compile = device.type == "cuda"
        if compile:
            mode = "reduce-overhead" if device.type == "cuda" else None  # CUDA graphs
            self.unet.compile(fullgraph=True, dynamic=False, mode=mode)
            self.vae.decoder.compile(fullgraph=True, dynamic=False, mode=mode)
        return self

    # Attributes of the call in progress, under diffusers' names.
    @property
    def guidance_scale(self) -> float:
        """Guidance scale of the call in progress."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the call in progress evaluates the unconditional branch."""
        return self._guidance_scale != 1.0

    @property
    def num_timesteps(self) -> int:
        """Number of steps of the call in progress."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Set `_interrupt` in a callback to skip the remaining steps."""
        return self._interrupt

    @property
    def text_encoders(self) -> list[str]:
        """Names of the text encoders that the pipeline has, in the order in which they are joined."""
        return [name for name in TEXT_ENCODERS if getattr(self, name) is not None]

    def joint_text_encoder(self) -> JointTextEncoder:
        """The pipeline's text encoders as one."""
        config = self.config
        return JointTextEncoder.from_components(self.components, config.language_max_length, config.language_prefix)

    def encode_prompt(self, prompt: str | list[str], text_encoders: Sequence[str] | None = None) -> TextStates:
        """Text states B N D of `prompt`, in the UNet's dtype (where there is one) and on the pipeline's device.

        text_encoders: names of those that read it, by default all; see `__call__`.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        encoder = self.joint_text_encoder()
        chosen = self.text_encoders if text_encoders is None else text_encoders
        dropped = torch.tensor([[name not in chosen for name in self.text_encoders]])
        encoded = {text: encoder([text], dropped) for text in dict.fromkeys(prompts)}  # one by one, as `__call__` says
        text = TextStates.cat([encoded[text] for text in prompts])
        device = self._execution_device
        dtype = text.states.dtype if self.unet is None else self.unet.dtype
        return TextStates(text.states.to(device, dtype), text.mask.to(device))

    def check_inputs(
        self,
        prompt: Any,
        negative_prompt: Any,
        height: int,
        width: int,
        num_inference_steps: int,
        guidance_scale: Any,
        num_images_per_prompt: int,
        guidance_interval: tuple[float, float],
        output_type: str,
        callback_on_step_end_tensor_inputs: list[str],
        text_encoders: Sequence[str] | None,
    ) -> None:
        """Raises ValueError naming the first argument that cannot be used."""

        def is_text(value: Any) -> bool:
            return isinstance(value, str) or (
                isinstance(value, list) and len(value) > 0 and all(isinstance(text, str) for text in value)
            )

        def is_whole(value: Any, low: int, high: float) -> bool:
            return isinstance(value, Integral) and low <= int(value) <= high

        if not is_text(prompt):
            raise ValueError(f"prompt is {prompt!r}, expected a string or a non-empty list of strings")
        if negative_prompt is not None and not is_text(negative_prompt):
            raise ValueError(f"negative_prompt is {negative_prompt!r}, expected a string or a list of strings")
        if isinstance(negative_prompt, list) and len(negative_prompt) != len(
            [prompt] if isinstance(prompt, str) else prompt
        ):
            raise ValueError("negative_prompt is a list of another length than prompt: one for each prompt expected")
        for name, size in (("height", height), ("width", width)):
            if not is_whole(size, SIZE_MULTIPLE, MAX_SIZE) or size % SIZE_MULTIPLE:
                raise ValueError(
                    f"{name} is {size!r}, expected a multiple of {SIZE_MULTIPLE} from {SIZE_MULTIPLE} to {MAX_SIZE}"
                )
        if not is_whole(num_inference_steps, 1, MAX_STEPS):
            raise ValueError(f"num_inference_steps is {num_inference_steps!r}, expected 1 to {MAX_STEPS}")
        if not isinstance(guidance_scale, Real) or not 0 <= float(guidance_scale) < float("inf"):
            raise ValueError(
                f"guidance_scale is {guidance_scale!r}, expected a finite number of at least 0 (1: no guidance)"
            )
        if not is_whole(num_images_per_prompt, 1, float("inf")):
            raise ValueError(f"num_images_per_prompt is {num_images_per_prompt!r}, expected at least 1")
        if len(guidance_interval) != 2 or not 0 <= guidance_interval[0] <= guidance_interval[1] <= 1:
            raise ValueError(f"guidance_interval is {guidance_interval}, expected (low, high), 0 <= low <= high <= 1")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type is {output_type!r}, expected one of {', '.join(OUTPUT_TYPES)}")
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs names {sorted(unknown)}, expected {self._callback_tensor_inputs}"
            )
        if text_encoders is not None:
            self.check_text_encoders(text_encoders)

    def check_text_encoders(self, names: Sequence[str]) -> None:
        """Raises ValueError unless `names` are text encoders of this model, at least one."""
        own = self.text_encoders
        if isinstance(names, str) or not names or not set(names) <= set(own):
            listed = ", ".join(f"{name} ({type(getattr(self, name)).__name__})" for name in own)
            only = ", the only one of this model" if len(own) == 1 else ""
            raise ValueError(f"text_encoders is {names!r}, expected some of {listed}{only}")

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, torch.Tensor, dict[str, Any]], dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        text_encoders: Sequence[str] | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Draws `num_images_per_prompt` pictures for every prompt.

        On a CPU they are computed one by one: a batch is hardly faster there, and since matrix products are summed
        in an order that depends on their size, it would show in the last bits of every picture.

        Args:
            prompt: what to draw; the empty prompt draws without text.
            negative_prompt: what guidance leads away from; by default the empty prompt. Without guidance, as few-step
                models are drawn, it is of no effect and a warning says so.
            height, width: in pixels, multiples of 32; by default the size the UNet was trained for.
            num_inference_steps: Euler steps, 1 to 1000; by default the pipeline's.
            guidance_scale: 1 switches guidance off; by default the pipeline's.
            guidance_interval: lowest and highest sigma in [0, 1] at which guidance is on.
            generator: one for all pictures, or a list with one for each (a picture then does not depend on
                the others in the batch).
            latents: the starting noise, B C h w, instead of drawing it.
            output_type: "pil", "np" (B H W 3 in [0, 1]), "pt" (B 3 H W in [0, 1]) or "latent" (normalised).
            callback_on_step_end: called as `callback(pipeline, step, timestep, {"latents": ...})` after every
                step; returns a dictionary that may hold new latents.
            text_encoders: names of those that read the prompts, such as `["text_encoder", "text_encoder_3"]`; the
                others read the empty prompt, which a model learns from dropping each by itself. By default all.

        Returns: `ImagePipelineOutput` with `images`, the pictures of the first prompt first.
        """
        size = self.unet.config.sample_size * self.vae.spatial_factor
        height, width = size if height is None else height, size if width is None else width
        steps = self.config.default_num_inference_steps if num_inference_steps is None else num_inference_steps
        scale = self.config.default_guidance_scale if guidance_scale is None else guidance_scale
        tensor_inputs = (
            ["latents"] if callback_on_step_end_tensor_inputs is None else callback_on_step_end_tensor_inputs
        )
        self.check_inputs(
            prompt,
            negative_prompt,
            height,
            width,
            steps,
            scale,
            num_images_per_prompt,
            guidance_interval,
            output_type,
            tensor_inputs,
            text_encoders,
        )
        if negative_prompt and scale == 1.0:
            warnings.warn("negative_prompt has no effect: guidance_scale is 1, there is no guidance", stacklevel=3)
        self._guidance_scale, self._num_timesteps, self._interrupt = scale, steps, False

        prompts = [prompt] if isinstance(prompt, str) else prompt
        avoided = negative_prompt if isinstance(negative_prompt, list) else [negative_prompt or ""] * len(prompts)
        text = self.encode_prompt(prompts, text_encoders).repeat(num_images_per_prompt)
        negatives = self.encode_prompt(avoided, text_encoders).repeat(num_images_per_prompt)

        device = self._execution_device
        factor = self.vae.spatial_factor
        count = len(prompts) * num_images_per_prompt
        together = 1 if device.type == "cpu" else count
        shape = (count, self.unet.config.in_channels, height // factor, width // factor)
        if isinstance(generator, list) and len(generator) != count:
            raise ValueError(f"generator has {len(generator)} entries, expected one for each of {count} pictures")
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        elif latents.shape != shape:
            raise ValueError(f"latents have shape {tuple(latents.shape)}, expected {shape}")

        def network(x: torch.Tensor, timestep: torch.Tensor, states: Any, mask: torch.Tensor) -> torch.Tensor:
            return self.unet(x.to(self.unet.dtype), timestep, states, mask, return_dict=False)[0].float()

        # A compiled network is so for one number of tokens, and a teacher attends to padding too.
        whole = self.unet._compiled_call_impl is not None or not isinstance(self.unet, SnapGenUNet)

        def under(*texts: TextStates) -> Velocity:
            """Under all of them, each on its part of a batch; projected at first use, so not what no guidance needs."""

            @cache
            def projected() -> Velocity:
                text = TextStates.cat(texts)
                text = text if whole else text.trimmed()
                return conditional(network, self.unet.text_key_values(text.states), text.mask)

            return lambda x, sigma: projected()(x, sigma)

        parts = [
            (under(positive), under(negative, positive))
            for positive, negative in zip(text.split(together), negatives.split(together), strict=True)
        ]

        def velocity(x: torch.Tensor, sigma: float) -> torch.Tensor:
            if self.interrupt:
                return torch.zeros_like(x)
            return torch.cat(
                [
                    # Made anew at every step: a callback may have changed the scale.
                    guided(with_text, with_both, self.guidance_scale, guidance_interval)(part, sigma)
                    for part, (with_text, with_both) in zip(x.split(together), parts, strict=True)
                ]
            )

        with self.progress_bar(total=steps) as progress:

            def on_step(index: int, sigma: float, x: torch.Tensor) -> torch.Tensor:
                if callback_on_step_end is not None and not self.interrupt:
                    timestep = torch.tensor(TIMESTEP_SCALE * sigma)
                    given = dict.fromkeys(tensor_inputs, x)
                    x = callback_on_step_end(self, index, timestep, given).pop("latents", x)
                progress.update()
                return x

            sigmas = sampling_sigmas(steps, self.config.shift).tolist()
            latents = euler(velocity, latents.to(device, torch.float32), sigmas, on_step)

        if output_type == "latent":
            images = latents
        else:
            z = self.vae.denormalize(latents).to(self.vae.dtype)
            decoded = torch.cat([self.vae.decode(part, return_dict=False)[0] for part in z.split(together)])
            images = self.image_processor.postprocess(decoded.float(), output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)
