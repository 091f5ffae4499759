"""SnapGenPipeline, the diffusers pipeline that turns prompts into pictures."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor

from snapgen.flow.guidance import guide, is_guided
from snapgen.flow.sampling import euler_step
from snapgen.flow.timesteps import TIMESTEP_SCALE, sampling_sigmas
from snapgen.machine.memory import keep_freed_memory
from snapgen.machine.precision import gains_by_bfloat16
from snapgen.models.autoencoder import SnapGenAutoencoder
from snapgen.models.denoiser import text_width
from snapgen.models.unet import SnapGenUNet
from snapgen.pipeline.adapters import AdapterLoader
from snapgen.pipeline.bundled import BUNDLED, bundled_folder
from snapgen.pipeline.conditioning import Conditioning, ProjectedText
from snapgen.pipeline.inputs import check_output, check_prompts, check_sampling, check_size, check_text_encoders
from snapgen.text.encoder import LANGUAGE_MAX_LENGTH, TextStates
from snapgen.text.join import TEXT_ENCODERS, JointTextEncoder, TextLayout, tokenizer_of


class SnapGenPipeline(DiffusionPipeline, AdapterLoader):
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
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        unet: SnapGenUNet,
        vae: SnapGenAutoencoder,
        text_encoder: Any = None,
        tokenizer: Any = None,
        text_encoder_2: Any = None,
        tokenizer_2: Any = None,
        text_encoder_3: Any = None,
        tokenizer_3: Any = None,
        shift: float = 3.0,
        default_guidance_scale: float = 4.0,
        default_num_inference_steps: int = 28,
        language_max_length: int = LANGUAGE_MAX_LENGTH,
        language_prefix: str = "",
        text_layout: dict[str, Any] | None = None,
        known_words: dict[str, list[str]] | None = None,
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
            text_layout=text_layout,
            known_words=known_words,
        )
        complete = [name for name in self.text_encoders if getattr(self, tokenizer_of(name)) is not None]
        if text_layout is None and complete:
            self.register_to_config(text_layout=self.joint_text_encoder().layout.to_config())
        self._check_text_width()
        factor = self.vae.spatial_factor if getattr(self, "vae", None) is not None else 8
        self.image_processor = VaeImageProcessor(vae_scale_factor=factor)

    @classmethod
    def bundled(cls, name: str = "mini") -> SnapGenPipeline:
        """A model that ships in the package, on the CPU in fp32.

        `mini` takes four steps without guidance. `mini-base`, from which it was distilled, takes 28 guided steps. They
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
        """Make generation fast on the pipeline's device; returns the pipeline. Call it after `to(device)`.

        UNet and autoencoder become channels-last, and bf16 where that is faster. On a CPU, the process keeps the memory
        of freed tensors from now on (`snapgen.machine.memory`). On a GPU, the networks are compiled (whole graph,
        static shapes, CUDA graphs), so the first picture of every size and batch takes a minute or more; `compile`
        overrides this choice. Pictures change by rounding errors. ValueError if the pipeline is offloaded.
        """
        hooks = ("_hf_hook", "_diffusers_hook")  # accelerate's, diffusers'
        if any(hasattr(module, hook) for module in self.unet.modules() for hook in hooks):
            raise ValueError("optimize() keeps the networks on one device: call it without offloading or casting")
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

    # Attributes of the call in progress, with diffusers' names.
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
        """Names of the pipeline's text encoders, in the order in which they are joined."""
        return [name for name in TEXT_ENCODERS if getattr(self, name) is not None]

    def joint_text_encoder(self) -> JointTextEncoder:
        """The pipeline's text encoders, joined into one."""
        config = self.config
        layout = config.text_layout and TextLayout.from_config(config.text_layout)
        if layout is None and self.text_encoders[:1] != [TEXT_ENCODERS[0]]:
            raise ValueError(
                f"{TEXT_ENCODERS[0]} is absent and the model has no text_layout, which says where the others stand: "
                "load it with all its text encoders and save it again"
            )
        return JointTextEncoder.from_components(
            self.components,
            config.language_max_length,
            config.language_prefix,
            device=self._execution_device,
            layout=layout,
        )

    def _check_text_width(self) -> None:
        """ValueError if the UNet reads other text states than the layout describes."""
        layout = self.config.text_layout
        if layout is None or getattr(self, "unet", None) is None:
            return
        width, read = TextLayout.from_config(layout).width, text_width(self.unet)
        if width != read:
            raise ValueError(
                f"the text encoders {', '.join(layout)} give states of width {width}, the UNet reads {read}: one is "
                "absent (load the model with all of them and save it again, for its text_layout), or it is another UNet"
            )

    def encode_prompt(self, prompt: str | list[str], text_encoders: Sequence[str] | None = None) -> TextStates:
        """Text states B N D of `prompt`, in the UNet's dtype (if there is a UNet), on the pipeline's device.

        text_encoders: names of those that read the prompt, by default all; see `__call__`.
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

    def prepare_latents(
        self,
        count: int,
        height: int,
        width: int,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
    ) -> torch.Tensor:
        """The noise to start from, B C h w, fp32: `latents` if given, else sampled with `generator`."""
        device, factor = self._execution_device, self.vae.spatial_factor
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
        return self.unet(x.to(self.unet.dtype), timestep, *text, return_dict=False)[0].float()

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
        """Generate `num_images_per_prompt` pictures for every prompt.

        On a CPU they are computed one by one: a batch is hardly faster there, and it would change the last bits of
        every picture, because the order in which a matrix product is summed depends on its size.

        Args:
            prompt: what to show; the empty prompt generates unconditionally.
            negative_prompt: what guidance steers away from; by default the empty prompt. Without guidance, as for
                few-step models, it has no effect and a warning says so.
            height, width: in pixels, multiples of 32; by default the size the UNet was trained for.
            num_inference_steps: Euler steps, 1 to 1000; by default the pipeline's.
            guidance_scale: 1 switches guidance off; by default the pipeline's.
            guidance_interval: lowest and highest sigma in [0, 1] at which guidance is on.
            generator: one for all pictures, or a list of one per picture (a picture then does not depend on the others
                in the batch).
            latents: the noise to start from, B C h w; by default it is sampled.
            output_type: "pil", "np" (B H W 3 in [0, 1]), "pt" (B 3 H W in [0, 1]) or "latent" (normalised).
            callback_on_step_end: called as `callback(pipeline, step, timestep, {"latents": ...})` after every
                step; returns a dictionary that may hold new latents.
            text_encoders: names of those that read the prompts, such as `["text_encoder", "text_encoder_3"]`; the
                others read the empty prompt, as in training, which drops each one independently. By default all.

        Returns: `ImagePipelineOutput` with `images`, those of the first prompt first.
        """
        # 1. Check the inputs; what is not given takes the model's own value.
        size = self.unet.config.sample_size * self.vae.spatial_factor
        height, width = size if height is None else height, size if width is None else width
        steps = self.config.default_num_inference_steps if num_inference_steps is None else num_inference_steps
        scale = self.config.default_guidance_scale if guidance_scale is None else guidance_scale
        given = callback_on_step_end_tensor_inputs
        tensor_inputs = self._callback_tensor_inputs if given is None else given
        check_prompts(prompt, negative_prompt)
        check_size(height, width)
        check_sampling(steps, scale, num_images_per_prompt, guidance_interval)
        check_output(output_type, tensor_inputs, self._callback_tensor_inputs)
        check_text_encoders(text_encoders, {name: getattr(self, name) for name in self.text_encoders})
        if negative_prompt and scale == 1.0:
            warnings.warn("negative_prompt has no effect: guidance_scale is 1, there is no guidance", stacklevel=3)
        self._guidance_scale, self._num_timesteps, self._interrupt = scale, steps, False

        # 2. Encode the prompts, B N D; `together` pictures are computed at once.
        prompts = [prompt] if isinstance(prompt, str) else prompt
        negatives = negative_prompt if isinstance(negative_prompt, list) else [negative_prompt or ""] * len(prompts)
        text = self.encode_prompt(prompts, text_encoders).repeat(num_images_per_prompt)
        negative = self.encode_prompt(negatives, text_encoders).repeat(num_images_per_prompt)
        count = len(prompts) * num_images_per_prompt
        together = 1 if self._execution_device.type == "cpu" else count
        pairs = zip(text.split(together), negative.split(together), strict=True)
        conditionings = [Conditioning(self.unet, *pair) for pair in pairs]

        # 3. Start from noise, B C h w.
        latents = self.prepare_latents(count, height, width, generator, latents)

        # 4. Denoise: Euler steps along the guided velocity, from sigma 1 to 0.
        sigmas = sampling_sigmas(steps, self.config.shift).tolist()
        with self.progress_bar(list(pairwise(sigmas))) as levels:
            for index, (sigma, following) in enumerate(levels):
                if self.interrupt:
                    continue
                velocities = []
                for x, texts in zip(latents.split(together), conditionings, strict=True):
                    if is_guided(sigma, self.guidance_scale, guidance_interval):
                        both = self.predict_velocity(torch.cat([x, x]), sigma, texts.both)
                        v_negative, v_text = both.chunk(2)
                        velocities.append(guide(v_text, v_negative, self.guidance_scale))
                    else:
                        velocities.append(self.predict_velocity(x, sigma, texts.positive))
                latents = euler_step(latents, torch.cat(velocities), sigma, following)  # Eq. 3
                if callback_on_step_end is not None:  # it may change latents and guidance, or interrupt
                    timestep = torch.tensor(TIMESTEP_SCALE * sigma)
                    changed = callback_on_step_end(self, index, timestep, dict.fromkeys(tensor_inputs, latents))
                    latents = changed.pop("latents", latents)

        # 5. Decode the latents into pictures, B 3 H W, and convert them.
        if output_type == "latent":
            images = latents
        else:
            z = self.vae.denormalize(latents).to(self.vae.dtype)
            decoded = torch.cat([self.vae.decode(part, return_dict=False)[0] for part in z.split(together)])
            images = self.image_processor.postprocess(decoded.float(), output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)
