"""What a step of a training recipe computes and holds, by part: counted on the `meta` device, before it is run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snapgen.config import Recipe, RecipeError
from snapgen.data.latents import pictures_at_once
from snapgen.flow.path import predict_x0
from snapgen.models.autoencoder import SnapGenAutoencoder
from snapgen.models.denoiser import Denoiser, feature_widths, text_width
from snapgen.models.discriminator import PatchDiscriminator
from snapgen.models.distiller import Discriminator, DistilledStudent
from snapgen.models.presets import create_autoencoder, create_denoiser
from snapgen.models.teacher import TeacherTransformer
from snapgen.pipeline.bundled import BUNDLED
from snapgen.profiling.counts import count
from snapgen.profiling.measure import LiveMemory
from snapgen.train.stages.autoencoder import AutoencoderRecipe
from snapgen.train.stages.distill import LAST, DistillRecipe
from snapgen.train.stages.flow import FlowRecipe, add_adapters
from snapgen.train.stages.step import FewStepStudent, StepRecipe

LATENT_FACTOR = 8  # pixels a latent position
FP32, BF16 = 4, 2  # bytes
CLIP_TOKENS, T5_TOKENS = 77, 256


@dataclass(frozen=True)
class TextModel:
    """A published text encoder."""

    parameters: int
    embeddings: int  # of these, what is looked up and not multiplied with
    tokens: int | None = CLIP_TOKENS  # of a caption; None: as the recipe says


TEXT_MODELS = {
    "openai/clip-vit-large-patch14": TextModel(123_060_480, 38_004_480),
    "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k": TextModel(693_021_440, 63_340_800),
    "google/gemma-2-2b": TextModel(2_614_341_888, 589_824_000, None),
    "google/t5-v1_1-xxl": TextModel(4_762_310_656, 131_596_288, T5_TOKENS),
}
TEXT_MODELS["google/gemma-2-2b-it"] = TEXT_MODELS["google/gemma-2-2b"]
OF_STABLE_DIFFUSION_3 = (
    "openai/clip-vit-large-patch14",
    "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
    "google/t5-v1_1-xxl",
)


@dataclass(frozen=True)
class Workload:
    """A step of one recipe. `flops` are of a sample in all turns of a step, `frozen` and `activations` are bytes."""

    network: nn.Module  # all that the stage trains, and what it keeps beside it, on the meta device
    macs: int  # forward pass of the network that the run leaves, of a sample
    flops: dict[str, float]  # by part
    frozen: dict[str, int]  # networks that do not learn, by part
    activations: int  # the most that is alive in the forward pass, or while pictures become latents
    latent_bytes: int = 0  # of a picture in the cache
    target_bytes: int = 0  # of a draw of a picture in the cache of the teacher's targets
    uncounted: tuple[str, ...] = ()  # what is computed and held besides, of unknown size


def workload(recipe: Recipe, batch: int, teacher: str | None = None) -> Workload:
    """Of an `autoencoder`, `flow`, `distill` or `step` recipe for `batch` samples at a time; else RecipeError.

    `teacher` is the preset that the recipe's teacher is counted as; by default its name decides.
    """
    if isinstance(recipe, AutoencoderRecipe):
        return _autoencoder(recipe, batch)
    if isinstance(recipe, FlowRecipe):
        return _flow(recipe, batch, teacher)
    raise RecipeError(f"stage {recipe.stage!r} cannot be planned: autoencoder, flow, distill and step can")


def _flow(recipe: FlowRecipe, batch: int, teacher: str | None) -> Workload:
    side = recipe.data.resolution // LATENT_FACTOR
    with torch.device("meta"):
        unet = create_denoiser(recipe.model)
        inputs = _inputs(unet, 1, side)
        macs = count(unet, lambda: unet(**inputs)).macs
        if recipe.lora is not None:
            add_adapters(cast(Any, unet), recipe.lora)
    # The backward pass is worth two forward ones; with adapters one, for hardly a weight has a gradient.
    passes = (3.0 if recipe.lora is None else 2.0) + recipe.train.activation_checkpointing
    flops, frozen = {"network": 2 * passes * macs}, {}
    network: nn.Module = unet
    guide, target_bytes = None, 0
    if isinstance(recipe, DistillRecipe):
        with torch.device("meta"):
            guide = create_denoiser(teacher or _teacher_preset(recipe.teacher)).requires_grad_(False)
            given = _inputs(guide, 1, side)
            taught = count(guide, lambda: guide(**given))
            network, more = _taught(recipe, unet, macs, guide, taught.macs, side)
        flops |= more
        target_bytes = 0 if recipe.target_cache is None else _target_bytes(recipe, guide, side)
        frozen["teacher"] = _frozen_bytes(recipe) * taught.parameters
    encoding, held, uncounted = _encoders(recipe, side)
    turns = recipe.adversary.updates + 1 if isinstance(recipe, StepRecipe) and recipe.adversary.weight else 1
    return Workload(
        network,
        macs,
        flops | {part: turns * size for part, size in encoding.items()},  # every turn has its own batch
        frozen | held,
        max(activation_bytes(recipe, batch, guide), _encoding_bytes(recipe, batch)),
        0 if recipe.cache is None else unet.config.in_channels * side**2 * 2,  # fp16
        target_bytes,
        uncounted,
    )


def _teacher_preset(name: str) -> str:
    if "stable-diffusion-3.5-large" in name:
        return "sd3.5-large"
    return "mini" if name in BUNDLED else "mini-teacher"


def _taught(
    recipe: DistillRecipe, unet: Denoiser, macs: int, guide: Denoiser, taught: int, side: int
) -> tuple[nn.Module, dict[str, float]]:
    """What a student is trained with, and the FLOPs that a teacher of `taught` MACs adds."""
    widths = feature_widths(guide)
    guided = 1 + (recipe.distillation.guidance_scale != 1.0)
    if not isinstance(recipe, StepRecipe):
        student = DistilledStudent(cast(Any, unet), widths[LAST])
        grid = _grid(guide, side)
        features = torch.empty(1, unet.config.block_out_channels[0], grid, grid)
        projector = count(student.projector, lambda: student.projector(features)).macs
        return student, {"projector": 6.0 * projector, "teacher": 2.0 * taught * guided}
    adversary, channels = recipe.adversary, [widths[tap] for tap in recipe.adversary.taps]
    flops = {"teacher": 2.0 * taught * guided * recipe.distillation.teacher_steps}
    heads = Discriminator(channels, adversary.hidden)
    if adversary.weight:
        with torch.no_grad():
            seen = guide(**_inputs(guide, 1, side), taps=adversary.taps)[1]
            judged = count(heads, lambda: heads(seen, torch.empty(1))).macs
        looks = 3 if adversary.smoothness else 2  # generated, real, and real ones that are perturbed
        discriminator = adversary.updates * (macs + looks * (taught + 3 * judged))
        generator = 2 * (taught + judged)  # forward, and back to the pictures
        flops["adversary"] = 2.0 * (discriminator + generator)
    return FewStepStudent(cast(Any, unet), heads), flops


def _grid(guide: Denoiser, side: int) -> int:
    """The side of the last features of `guide` on latents of `side`."""
    return side // guide.config.patch_size if isinstance(guide, TeacherTransformer) else side


def _target_bytes(recipe: DistillRecipe, guide: Denoiser, side: int) -> int:
    """Of the teacher's answers to one sample, as they are stored."""
    velocity = guide.config.in_channels * side**2
    features = feature_widths(guide)[LAST] * _grid(guide, side) ** 2 if recipe.distillation.features else 0
    return (velocity + features) * _frozen_bytes(recipe)


def _encoders(recipe: FlowRecipe, side: int) -> tuple[dict[str, float], dict[str, int], tuple[str, ...]]:
    """FLOPs of a sample and bytes of the frozen autoencoder and text encoders; which ones are of unknown size."""
    autoencoder = _autoencoder_of(recipe)
    flops: dict[str, float] = {}
    if recipe.cache is None:
        picture = torch.empty(1, 3, side * LATENT_FACTOR, side * LATENT_FACTOR, device="meta")
        flops["encoding of pictures"] = 2.0 * count(autoencoder, lambda: autoencoder.encode(picture)).macs
    frozen = {"autoencoder": FP32 * sum(parameter.numel() for parameter in autoencoder.parameters())}
    names = [recipe.text] if isinstance(recipe.text, str) else list(recipe.text)
    if isinstance(recipe, DistillRecipe) and _teacher_preset(recipe.teacher) == "sd3.5-large":
        names += OF_STABLE_DIFFUSION_3
    models = [TEXT_MODELS[name] for name in names if name in TEXT_MODELS]
    if models:
        multiplied = [
            (model.parameters - model.embeddings) * (model.tokens or recipe.language.max_length) for model in models
        ]
        flops["encoding of text"] = 2.0 * sum(multiplied)
        frozen["text encoders"] = _frozen_bytes(recipe) * sum(model.parameters for model in models)
    return flops, frozen, tuple(f"text encoder {name}" for name in names if name not in TEXT_MODELS)


def _autoencoder_of(recipe: FlowRecipe) -> SnapGenAutoencoder:
    """The one in the recipe's folder, or, before it is trained, the one of the preset that goes with the network."""
    with torch.device("meta"):
        if (recipe.autoencoder / "config.json").is_file():
            config = SnapGenAutoencoder.load_config(recipe.autoencoder)
            return cast(SnapGenAutoencoder, SnapGenAutoencoder.from_config(config))
        small = next((name for name in ("mini", "debug") if recipe.model.startswith(name)), "decoder")
        return create_autoencoder("mini" if str(recipe.autoencoder) in BUNDLED else small)


def _encoding_bytes(recipe: FlowRecipe, batch: int) -> int:
    """The most that is alive while pictures become latents in a step; that is over when the network runs."""
    if recipe.cache is not None:
        return 0
    dtype, side = _dtype(recipe), recipe.data.resolution
    encoder = _autoencoder_of(recipe).to(dtype).encoder
    pictures = torch.empty(min(batch, pictures_at_once(side, side)), 3, side, side, dtype=dtype, device="meta")
    with torch.no_grad():
        return _peak(lambda: encoder(pictures))


def activation_bytes(recipe: FlowRecipe, batch: int, guide: Denoiser | None = None) -> int:
    """The most that is alive in the forward pass of a training step, on the meta device in the recipe's precision.

    Of an adversarial one the generator's, which goes through the teacher, `guide`: its weights have no gradients, but
    the way back to the student's picture keeps what its blocks computed.
    """
    dtype, side = _dtype(recipe), recipe.data.resolution // LATENT_FACTOR
    with torch.device("meta"):
        network = create_denoiser(recipe.model).to(dtype).train()
        if recipe.train.activation_checkpointing:
            network.enable_gradient_checkpointing()
        if recipe.lora is not None:
            add_adapters(cast(Any, network), recipe.lora)
        inputs = {name: tensor.to(dtype) for name, tensor in _inputs(network, batch, side).items()}
        if not (isinstance(recipe, StepRecipe) and recipe.adversary.weight and guide is not None):
            return _peak(lambda: network(**inputs, return_dict=False)[0].float().square().mean())
        guide, taps = guide.to(dtype), recipe.adversary.taps
        given = {name: tensor.to(dtype) for name, tensor in _inputs(guide, batch, side).items()}

        def generate() -> list[Tensor]:
            velocity = network(**inputs, return_dict=False)[0]
            given["sample"] = predict_x0(inputs["sample"], velocity, inputs["timestep"]).to(dtype)
            features: list[Tensor] = guide(**given, taps=taps)[1]
            return features

        return _peak(generate)


def _autoencoder(recipe: AutoencoderRecipe, batch: int) -> Workload:
    weights, training = recipe.weights, 3 if recipe.train_encoder else 1
    with torch.device("meta"):
        network = nn.Module()
        network.autoencoder = autoencoder = create_autoencoder(recipe.model)
        autoencoder.encoder.requires_grad_(recipe.train_encoder)
        picture = torch.empty(1, 3, recipe.crop, recipe.crop)
        side = recipe.crop // autoencoder.spatial_factor
        latent = torch.empty(1, autoencoder.config.latent_channels, side, side)
        encoder = count(autoencoder.encoder, lambda: autoencoder.encoder(picture)).macs
        decoder = count(autoencoder.decoder, lambda: autoencoder.decoder(latent)).macs
        flops = {"encoder": 2.0 * training * encoder, "decoder": 6.0 * decoder}
        frozen: dict[str, int] = {}
        judges: list[nn.Module] = []
        if weights.adversarial:
            network.discriminator = critic = PatchDiscriminator()
            judged = count(critic, lambda: critic(picture)).macs
            # Its own turn draws and then learns from two pictures; in the other one it is only passed.
            flops["adversary"] = 2.0 * (encoder + decoder + 2 * 3 * judged + 2 * judged)
            judges.append(critic)
        if weights.lpips:
            vgg = vgg16_features().requires_grad_(False)
            seen = count(vgg, lambda: vgg(picture))
            flops["LPIPS"] = 2.0 * 3 * seen.macs  # of two pictures, and back to one
            frozen["LPIPS"] = FP32 * seen.parameters
            judges.append(vgg)

        dtype = _dtype(recipe)
        pictures = picture.expand(batch, -1, -1, -1).to(dtype)
        parts = [network, *judges]
        for part in parts:
            part.to(dtype)

        def reconstruct() -> list[Tensor]:
            mean = autoencoder.encoder(pictures).chunk(2, dim=1)[0]
            drawn = autoencoder.decoder(mean)
            return [drawn, *(judge(drawn) for judge in judges)]

        activations = _peak(reconstruct)
    macs = decoder + (encoder if recipe.train_encoder else 0)
    return Workload(network, macs, flops, frozen, activations)


def vgg16_features() -> nn.Sequential:
    """What LPIPS compares pictures by: VGG-16's convolutions (Simonyan and Zisserman 2014, configuration D)."""
    layers: list[nn.Module] = []
    width = 3
    for following, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        layers += [nn.MaxPool2d(2)] if layers else []
        for _ in range(depth):
            layers += [nn.Conv2d(width, following, 3, padding=1), nn.ReLU(inplace=True)]
            width = following
    return nn.Sequential(*layers)


def _dtype(recipe: Recipe) -> torch.dtype:
    return torch.bfloat16 if recipe.train.precision == "bf16" else torch.float32


def _frozen_bytes(recipe: Recipe) -> int:
    """Of a parameter that does not learn."""
    return BF16 if recipe.train.precision == "bf16" else FP32


def _peak(run: Callable[[], object]) -> int:
    """Bytes alive at most in `run`, whose result is held to its end."""
    with _fused_attention(), LiveMemory() as memory:
        run()
    return memory.peak


def _inputs(network: Denoiser, batch: int, side: int) -> dict[str, Tensor]:
    """Latent, timestep and text, of 32 tokens (miniature), 77 (CLIP-L), 333 (Stable Diffusion 3) or 377 (full size)."""
    width = text_width(network)
    teacher = isinstance(network, TeacherTransformer)
    tokens = 32 if width < 768 else 333 if teacher else CLIP_TOKENS if width == 768 else 377
    inputs = {
        "sample": torch.empty(batch, network.config.in_channels, side, side),
        "timestep": torch.empty(batch),
        "encoder_hidden_states": torch.empty(batch, tokens, width),
    }
    if teacher:
        inputs["pooled_projections"] = torch.empty(batch, network.config.pooled_projection_dim)
    return inputs


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Attention that keeps what a fused kernel keeps (queries, result), not the matrix of weights."""

    def attend(query: Tensor, key: Tensor, value: Tensor, **settings: Any) -> Tensor:
        return query * value.mean(dim=-2, keepdim=True)

    with patch.object(F, "scaled_dot_product_attention", attend):
        yield
