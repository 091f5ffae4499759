"""Teachers for distillation: frozen networks with their text conditioning, from captions to velocities and features.

There are two kinds, and both share the student's latents. One was trained here: a transformer like Stable Diffusion 3's
or a UNet (the student's own, for step distillation). It reads the student's text states. The other is a published
Stable Diffusion 3 (Esser et al. 2024), such as SD3.5-Large, and reads captions with its own encoders. The outputs of
either can be stored (`snapgen.train.teachers.targets`).
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DiffusionPipeline, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor

from snapgen.flow.guidance import guide, has_guidance
from snapgen.flow.schedule import TIMESTEP_SCALE
from snapgen.models.autoencoder import SnapGenAutoencoder, same_latents
from snapgen.models.denoiser import Denoiser, feature_widths, pooled_width, text_width
from snapgen.models.teacher import TeacherTransformer
from snapgen.models.unet import SnapGenUNet
from snapgen.pipeline.classes import STABLE_DIFFUSION_PARTS, check_index
from snapgen.text.join import JointTextEncoder
from snapgen.weights import check_healthy, load_network, load_pretrained

NETWORKS = {  # class in a pipeline's index -> class that it is loaded as
    SD3Transformer2DModel.__name__: TeacherTransformer,
    TeacherTransformer.__name__: TeacherTransformer,
    SnapGenUNet.__name__: SnapGenUNet,
}


class Teacher(ABC):
    """What a student learns from: gives velocities and features at noisy latents."""

    feature_widths: Sequence[int]  # channels of the features at each tap

    def conditions(self, captions: list[str]) -> dict[str, Tensor]:
        """The teacher's own text conditions for `captions`, to add to the batch; "" is its unconditional branch."""
        return {}

    @abstractmethod
    def __call__(
        self,
        x: Tensor,
        sigmas: Tensor,
        batch: Mapping[str, Tensor],
        taps: tuple[int, ...] = (),
        guidance_scale: float = 1.0,
    ) -> tuple[Tensor, list[Tensor]]:
        """The velocity B C H W, fp32, and the features B D h w at the network's `taps`.

        Gradients reach `x`, unless the caller uses no_grad. Features are those under the captions, guided or not.

        Args:
            x: noisy latents, B C H W.
            sigmas: their noise levels in [0, 1], shape B.
            batch: the student's text, `states` (B N D), `mask` (B N) and `pooled` (B P) if it reads that, and the
                result of `conditions`.
            guidance_scale: of classifier-free guidance; up to 1, there is none.
        """


class NetworkTeacher(Teacher):
    """A frozen network and its text conditioning."""

    def __init__(self, network: Denoiser):
        self.network = network.eval().requires_grad_(False)
        self.feature_widths = feature_widths(network)

    @abstractmethod
    def _texts(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The network's text arguments for the captions of `batch`, and for the empty prompt."""

    def __call__(
        self,
        x: Tensor,
        sigmas: Tensor,
        batch: Mapping[str, Tensor],
        taps: tuple[int, ...] = (),
        guidance_scale: float = 1.0,
    ) -> tuple[Tensor, list[Tensor]]:
        """Two evaluations when guided, one otherwise."""
        captioned, empty = self._texts(batch)
        velocity, features = self._evaluate(x, sigmas, captioned, taps)
        if has_guidance(guidance_scale):
            unconditional, _ = self._evaluate(x, sigmas, empty, ())
            velocity = guide(velocity, unconditional, guidance_scale)
        return velocity, features

    def _evaluate(
        self, x: Tensor, sigmas: Tensor, text: dict[str, Tensor], taps: tuple[int, ...]
    ) -> tuple[Tensor, list[Tensor]]:
        velocity, features = self.network(x.to(self.network.dtype), TIMESTEP_SCALE * sigmas, **text, taps=taps)
        return velocity.float(), features


class SharedTextTeacher(NetworkTeacher):
    """A teacher trained with the student's text encoders; it attends to all of their padding."""

    def __init__(self, network: Denoiser, text: JointTextEncoder):
        super().__init__(network)
        if text_width(network) != text.width:
            raise ValueError(
                f"it reads text states of width {text_width(network)}, the student's encoders give {text.width}"
            )
        self.reads_pooled = pooled_width(network) is not None
        self.empty = text([""])

    def _texts(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        states, mask = batch["states"].to(self.network.dtype), batch["mask"]
        padding = self.empty.mask.shape[1] - mask.shape[1]  # tokens beyond the batch's longest caption
        states, mask = F.pad(states, (0, 0, 0, padding)), F.pad(mask, (0, padding))
        pooled = batch["pooled"].to(states.dtype) if self.reads_pooled else None
        nothing = None if pooled is None else torch.zeros_like(pooled)
        given = _arguments(states, mask, pooled)
        empty = _arguments(self.empty.states.to(states.dtype), self.empty.mask, nothing)
        return given, {name: tensor.expand_as(given[name]) for name, tensor in empty.items()}


def _arguments(states: Tensor, mask: Tensor, pooled: Tensor | None) -> dict[str, Tensor]:
    arguments = {"encoder_hidden_states": states, "encoder_attention_mask": mask}
    return arguments | ({} if pooled is None else {"pooled_projections": pooled})


class StableDiffusionTeacher(NetworkTeacher):
    """A published Stable Diffusion 3; `encoders` is its pipeline without autoencoder and scheduler."""

    def __init__(self, transformer: TeacherTransformer, encoders: StableDiffusion3Pipeline):
        super().__init__(transformer)
        self.encoders = encoders
        # It warns about every truncated caption, and training reads thousands.
        logging.getLogger(StableDiffusion3Pipeline.__module__).setLevel(logging.ERROR)
        self.empty = self.conditions([""])

    @torch.no_grad()
    def conditions(self, captions: list[str]) -> dict[str, Tensor]:
        """Joined states of the CLIPs and T5 (B 333 4096), unscaled and padded, and the CLIPs' pooled ones (B 2048)."""
        states, _, pooled, _ = self.encoders.encode_prompt(
            captions, captions, captions, device=self.network.device, do_classifier_free_guidance=False
        )
        return {"teacher_states": states, "teacher_pooled": pooled}

    def _texts(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        count = len(batch["teacher_pooled"])

        def arguments(part: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {
                "encoder_hidden_states": part["teacher_states"].expand(count, -1, -1),
                "pooled_projections": part["teacher_pooled"].expand(count, -1),
            }

        return arguments(batch), arguments(self.empty)


def load_teacher(
    source: str, autoencoder: SnapGenAutoencoder, text: JointTextEncoder, dtype: torch.dtype, device: torch.device
) -> NetworkTeacher:
    """The teacher `source`, a folder or hub name, in `dtype` on `device`.

    `autoencoder` and `text` are the student's. ValueError if `source` cannot be loaded, is no teacher, or was trained
    on latents other than that autoencoder's.
    """
    index = load_pretrained(DiffusionPipeline.load_config, source)
    published = index.get("_class_name") == StableDiffusion3Pipeline.__name__
    part, autoencoder_type = ("transformer", AutoencoderKL) if published else ("unet", SnapGenAutoencoder)
    if published:
        check_index(index, source, STABLE_DIFFUSION_PARTS, StableDiffusion3Pipeline.__name__)
    name = (index.get(part) or [None, None])[-1]
    if name not in NETWORKS:
        raise ValueError(f"{part} of {source} is a {name}, expected one of {', '.join(NETWORKS)}")
    check_latents(autoencoder, load_network(autoencoder_type, source, subfolder="vae", dtype=torch.float32), source)
    network = load_network(NETWORKS[name], source, subfolder=part, dtype=dtype).to(device)
    if not published:
        teacher = SharedTextTeacher(network, text)
        text.layout.check_columns(index.get("text_layout"))
        return teacher
    parts = {"transformer": network, "vae": None, "scheduler": None}
    load = StableDiffusion3Pipeline.from_pretrained
    encoders = load_pretrained(load, source, **parts, use_safetensors=True, dtype=dtype).to(device)
    for name, encoder in encoders.components.items():
        if isinstance(encoder, torch.nn.Module):
            check_healthy(dict(encoder.named_parameters()), f"{source}/{name}")
    return StableDiffusionTeacher(network, encoders)


def check_latents(student: SnapGenAutoencoder, teacher: SnapGenAutoencoder | AutoencoderKL, source: str) -> None:
    """ValueError if the teacher has another autoencoder: its outputs would make no sense on the student's latents."""
    if not same_latents(student, teacher):
        raise ValueError(
            f"its latents are those of {source}, others than the student's: both must be trained on one autoencoder's"
        )
