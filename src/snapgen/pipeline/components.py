"""What the pipelines are made of and how they come to be: components, configuration, loading, speed."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.image_processor import VaeImageProcessor

from snapgen.machine.memory import keep_freed_memory
from snapgen.machine.precision import gains_by_bfloat16
from snapgen.models.denoiser import Denoiser, text_width
from snapgen.pipeline.bundled import BUNDLED, bundled_folder
from snapgen.pipeline.classes import read_own_index
from snapgen.pipeline.vae import Autoencoder, check_vae, scale_factor
from snapgen.text.encoder import LANGUAGE_MAX_LENGTH
from snapgen.text.join import TEXT_ENCODERS, JointTextEncoder, TextLayout, tokenizer_of
from snapgen.weights import only_variant

# The settings of diffusers' scheduler that the sampling here has; any other value is refused.
SCHEDULER_SETTINGS = {
    name: value for name, value in FlowMatchEulerDiscreteScheduler().config.items() if not name.startswith("_")
}


class SnapGenComponents(DiffusionPipeline):
    """The components and the configuration that all pipelines share."""

    def __init__(
        self,
        unet: Denoiser,
        vae: Autoencoder,
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
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor, do_convert_rgb=True)

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets a component or attribute; a `vae` for other latents is refused, here and so in the constructor."""
        if name == "vae" and value is not None:
            check_vae(value, self.__dict__.get("unet"), self.__dict__.get("vae"))
        super().__setattr__(name, value)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **settings: Any) -> Self:
        """As diffusers' method; a local folder may also lack any component, or hold the weights of a variant alone.

        It reads safetensors alone, and never runs code that comes with a model. ValueError if the index of a local
        folder names other classes than a model of this package may have.
        """
        settings |= {"use_safetensors": True, "trust_remote_code": False}
        folder = Path(pretrained_model_name_or_path)
        if folder.is_dir():
            index = read_own_index(folder)
            absent = [name for name, entry in index.items() if isinstance(entry, list) and entry[0] is None]
            settings = dict.fromkeys(absent) | settings
            variants = {only_variant(folder / name) for name in index if (folder / name).is_dir()} - {None}
            if len(variants) == 1:
                settings = {"variant": variants.pop()} | settings
        pipeline: Self = super().from_pretrained(pretrained_model_name_or_path, **settings)
        return pipeline

    @classmethod
    def bundled(cls, name: str = "mini") -> Self:
        """A model that ships in the package, on the CPU in fp32.

        `mini` takes four steps without guidance. `mini-base`, from which it was distilled, takes 28 guided steps. They
        share everything but the UNet.
        """
        if name not in BUNDLED:
            raise ValueError(f"there is no bundled model '{name}': use {' or '.join(BUNDLED)}")
        base, settings = bundled_folder(), {"dtype": torch.float32, "local_files_only": True}
        if name == "mini-base":
            return cls.from_pretrained(base, **settings)
        shared = cls.from_pretrained(base, unet=None, **settings).components
        parts = {part: component for part, component in shared.items() if component is not None}
        return cls.from_pretrained(base / BUNDLED[name], **parts, **settings)

    def optimize(self, compile: bool | None = None) -> Self:
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
        for network in filter(None, (self.unet, self.vae)):
            network.to(device, memory_format=torch.channels_last)
            if gains_by_bfloat16(device):
                network.bfloat16()
        if compile is None:
            compile = device.type == "cuda"
        if compile:
            mode = "reduce-overhead" if device.type == "cuda" else None  # CUDA graphs
            self.unet.compile(fullgraph=True, dynamic=False, mode=mode)
            if self.vae is not None:
                self.vae.decoder.compile(fullgraph=True, dynamic=False, mode=mode)
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration without the components: with `components`, the arguments of a sibling's constructor."""
        arguments = signature(SnapGenComponents.__init__).parameters
        return {name: self.config[name] for name in arguments if name != "self" and name not in self.components}

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent position along each side; 8 without an autoencoder."""
        return scale_factor(self.vae)

    @property
    def text_encoders(self) -> list[str]:
        """Names of the pipeline's text encoders, in the order in which they are joined."""
        return [name for name in TEXT_ENCODERS if getattr(self, name) is not None]

    def joint_text_encoder(self, language_max_length: int | None = None) -> JointTextEncoder:
        """The pipeline's text encoders, joined into one; `language_max_length` replaces the configuration's."""
        config = self.config
        layout = config.text_layout and TextLayout.from_config(config.text_layout)
        if layout is None and self.text_encoders[:1] != [TEXT_ENCODERS[0]]:
            raise ValueError(
                f"{TEXT_ENCODERS[0]} is absent and the model has no text_layout, which says where the others stand: "
                "load it with all its text encoders and save it again"
            )
        length = config.language_max_length if language_max_length is None else language_max_length
        if layout is not None and language_max_length is not None:
            layout = layout.with_language_tokens(language_max_length)
        return JointTextEncoder.from_components(
            self.components, length, config.language_prefix, device=self._execution_device, layout=layout
        )

    def _check_text_width(self) -> None:
        """ValueError if the UNet reads other text states than the layout describes."""
        layout = self.config.text_layout
        if layout is None or self.unet is None:
            return
        width, read = TextLayout.from_config(layout).width, text_width(self.unet)
        if width != read:
            raise ValueError(
                f"the text encoders {', '.join(layout)} give states of width {width}, the UNet reads {read}: one is "
                "absent (load the model with all of them and save it again, for its text_layout), or it is another UNet"
            )

    @property
    def scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        """diffusers' scheduler with the pipeline's `shift`, made anew whenever it is asked for.

        Sampling does not use it: it is a function of the noise levels (`snapgen.pipeline.denoising.denoise`), equal to
        this scheduler's steps. To assign a `FlowMatchEulerDiscreteScheduler` changes the configuration's `shift`.
        """
        return FlowMatchEulerDiscreteScheduler(shift=self.config.shift)

    @scheduler.setter
    def scheduler(self, scheduler: Any) -> None:
        wish = "sampling takes Euler steps; for other noise levels give the call `sigmas`"
        if type(scheduler) is not FlowMatchEulerDiscreteScheduler:
            raise ValueError(
                f"scheduler is a {type(scheduler).__name__}, expected FlowMatchEulerDiscreteScheduler: {wish}"
            )
        for name, value in SCHEDULER_SETTINGS.items():
            if name != "shift" and scheduler.config[name] != value:
                raise ValueError(f"scheduler has {name}={scheduler.config[name]!r}, expected {value!r}: {wish}")
        self.register_to_config(shift=scheduler.shift)

    # diffusers' former names for what its autoencoders now offer themselves; many scripts use them.
    def enable_vae_tiling(self) -> None:
        """Decode and encode large pictures in overlapping tiles: less memory, slightly other pictures."""
        self.vae.enable_tiling()

    def disable_vae_tiling(self) -> None:
        """Decode and encode pictures as a whole again."""
        self.vae.disable_tiling()

    def enable_vae_slicing(self) -> None:
        """Decode and encode the pictures of a batch one by one: less memory."""
        self.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        """Decode and encode the pictures of a batch together again."""
        self.vae.disable_slicing()
