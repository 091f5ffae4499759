"""Exports a model: opens it, converts its networks, measures them against torch, and writes the bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import ModelCard

from snapgen.export.parity import check_parity, measure_parity
from snapgen.export.parts import Part, decoder_part, text_part, unet_part
from snapgen.export.targets import TARGETS
from snapgen.files import TEXT_LIMIT, atomic_folder, decode_text, manifest, read_whole, write_text
from snapgen.flow.noise import seeded_noise
from snapgen.messages import Notify
from snapgen.models.denoiser import Denoiser, pooled_width
from snapgen.models.presets import AUTOENCODER_OF, UNETS, create_autoencoder, create_unet
from snapgen.models.teacher import TeacherTransformer
from snapgen.pipeline.bundled import BUNDLED, bundled_folder
from snapgen.pipeline.load import check_model_name, load_adapters, load_pipeline
from snapgen.pipeline.text_to_image import SnapGenPipeline
from snapgen.pipeline.vae import scale_factor
from snapgen.pipeline.words import KEY, checked_words
from snapgen.runtime.bundle import Bundle, File, Golden, Latents, Parity, Sampling, Text, write_bundle
from snapgen.runtime.pipeline import read_tokenizers
from snapgen.text.encoder import TransformersTextEncoder
from snapgen.text.join import TextLayout, tokenizer_of

GOLDEN_SEED, GOLDEN_COUNT = 0, 64
PRESET_TOKENS = 77  # of text that a preset, which has no text encoder, is converted with: CLIP's
LARGEST_HALF = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class ExportSettings:
    """What to export, and how."""

    target: str
    precision: str | None = None  # of the weights; by default the target's first
    height: int | None = None  # pixels; by default those that the model was trained for
    width: int | None = None
    encoders: Sequence[str] | None = None  # text encoders to export, by default all
    lora: Path | None = None  # adapters to fuse into the UNet


def export_model(model: str, out: Path, settings: ExportSettings, notify: Notify) -> Bundle:
    """Writes the bundle of `model` to the folder `out`, whole or not at all, and returns its description.

    model: a bundled model, a folder, a hub name, or a UNet's preset, which is exported with random weights and without
    text encoders. ValueError if it cannot be converted, or the result misses what the target must reach.
    """
    target = TARGETS[settings.target]
    precision = settings.precision or next(iter(target.precisions))
    floor = target.precisions[precision]
    pipeline = open_model(model, settings)
    with atomic_folder(out) as folder:
        if precision == "w16":
            round_weights(pipeline, notify)
        parts = parts_of(pipeline, settings)
        converter = target.open()
        bundle = Bundle(
            target=settings.target,
            precision=precision,
            model=Path(model).resolve().name if Path(model).is_dir() else model,  # no folders of this machine
            snapgen=version("snapgen"),
            license=license_of(model),
            networks={part.name: converter.convert(part, folder, precision, notify) for part in parts},
            texts=write_texts(pipeline, folder),
            latents=latents_of(pipeline, parts[-1], target.fixed),
            sampling=Sampling(
                steps=pipeline.config.default_num_inference_steps,
                guidance=pipeline.config.default_guidance_scale,
                shift=pipeline.config.shift,
            ),
            known_words=words_of(pipeline, model) if settings.lora is None else None,  # adapters bring their own
            golden=Golden(seed=GOLDEN_SEED, noise=seeded_noise(GOLDEN_SEED, (GOLDEN_COUNT,)).tolist()),
            parity=Parity(inputs=1, relative_error={}, psnr=[]),
            files={},
        )
        networks = {name: converter.load(network, folder) for name, network in bundle.networks.items()}
        files = [text.tokenizer for text in bundle.texts if text.tokenizer is not None]
        parity = measure_parity(
            bundle, {part.name: part for part in parts}, networks, read_tokenizers(folder, files), notify
        )
        check_parity(parity, floor)
        written = {
            name: File(bytes=(folder / name).stat().st_size, sha256=digest) for name, digest in manifest(folder).items()
        }
        bundle = bundle.model_copy(update={"parity": parity, "files": written})
        write_bundle(bundle, folder)
    return bundle


def open_model(model: str, settings: ExportSettings) -> SnapGenPipeline:
    """The pipeline to export, on the CPU in fp32, with its adapters fused."""
    if model in UNETS and model not in BUNDLED and not Path(model).is_dir():
        if settings.encoders is not None:
            raise ValueError(f"encoders is {list(settings.encoders)}, and a preset such as {model} has no text encoder")
        torch.manual_seed(0)
        vae = create_autoencoder(AUTOENCODER_OF.get(model, "decoder"))
        pipeline = SnapGenPipeline(unet=create_unet(model), vae=vae)
    else:
        check_model_name(model)
        pipeline = load_pipeline(model, settings.encoders)
    if settings.lora is not None:
        load_adapters(pipeline, settings.lora)
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
    pipeline = pipeline.to("cpu")
    for network in networks_of(pipeline):
        network.eval().requires_grad_(False)
    return cast(SnapGenPipeline, pipeline)


def networks_of(pipeline: SnapGenPipeline) -> list[torch.nn.Module]:
    """All networks of `pipeline`."""
    return [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]


def round_weights(pipeline: SnapGenPipeline, notify: Notify) -> None:
    """Rounds the weights to what fp16 holds, and says so if that changes them; ValueError if they are too large."""
    changed = 0
    with torch.no_grad():
        for network in networks_of(pipeline):
            for name, parameter in network.named_parameters():
                if parameter.abs().max() > LARGEST_HALF:
                    raise ValueError(f"{name} has weights beyond {LARGEST_HALF:g}, fp16's largest: export it in fp32")
                rounded = parameter.half().float()
                changed += int((rounded != parameter).sum())
                parameter.copy_(rounded)
    if changed:
        notify(f"{changed:,} weights were rounded to fp16")


def parts_of(pipeline: SnapGenPipeline, settings: ExportSettings) -> list[Part]:
    """The networks to convert: text encoders, UNet, decoder."""
    unet, vae = pipeline.unet, pipeline.vae
    unit = multiple_of(unet) * scale_factor(vae)
    own = unet.config.sample_size * scale_factor(vae)
    height, width = settings.height or own, settings.width or own
    if height % unit or width % unit:
        raise ValueError(f"--size {width}x{height}: multiples of {unit} are expected")
    latent = (height // scale_factor(vae), width // scale_factor(vae))
    if not pipeline.text_encoders:
        return [unet_part(unet, *latent, PRESET_TOKENS), decoder_part(vae, *latent)]
    joint = pipeline.joint_text_encoder()
    pooled = pooled_width(unet) is not None
    texts = [
        text_part(name, cast(TransformersTextEncoder, encoder), pooled and encoder.is_clip)
        for name, encoder in joint.encoders.items()
    ]
    return [*texts, unet_part(unet, *latent, joint.max_length), decoder_part(vae, *latent)]


def multiple_of(unet: Denoiser) -> int:
    """What the sides of latents must be multiples of, so that no stage of `unet` has an odd one."""
    if isinstance(unet, TeacherTransformer):
        return int(unet.config.patch_size)
    return int(2 ** (len(unet.config.block_out_channels) - 1))


def latents_of(pipeline: SnapGenPipeline, decoder: Part, fixed: bool) -> Latents:
    """The latents that the bundle takes; by default those that it was converted with."""
    _, channels, height, width = decoder.inputs["latents"].shape
    return Latents(
        channels=channels,
        height=height,
        width=width,
        multiple=multiple_of(pipeline.unet),
        fixed=fixed,
        pixels=scale_factor(pipeline.vae),
    )


def write_texts(pipeline: SnapGenPipeline, folder: Path) -> list[Text]:
    """Writes the tokenizers into `folder`, and says what each text encoder reads and where its states stand."""
    if not pipeline.text_encoders:
        return []
    joint = pipeline.joint_text_encoder()
    layout: TextLayout = joint.layout
    texts = []
    for name, place in layout.places.items():
        facts: dict[str, Any] = {"tokens": list(place.tokens), "columns": list(place.columns), "pooled": place.pooled}
        file = None
        if name in joint.encoders:
            encoder = cast(TransformersTextEncoder, joint.encoders[name])
            file = f"{tokenizer_of(name)}.json"
            write_tokenizer(encoder.tokenizer, folder / file)
            facts |= {
                "prefix": encoder.prefix,
                "prefix_start": encoder.prefix_start,
                "prefix_length": encoder.prefix_length,
                "pad_token": encoder.tokenizer.pad_token_id or 0,
            }
        texts.append(Text(network=cast(Any, name), tokenizer=file, **facts))
    return texts


def write_tokenizer(tokenizer: Any, path: Path) -> None:
    """Writes the rules of `tokenizer`; ValueError if they are not in the form of the library `tokenizers`."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"the tokenizer {type(tokenizer).__name__} has no tokenizer.json, which bundles need")
    write_text(backend.to_str(), path)


def words_of(pipeline: SnapGenPipeline, model: str) -> dict[str, list[str]] | None:
    """The words that the model has learned, if it lists them."""
    words = checked_words(pipeline.config.get(KEY), model)
    return None if words is None else {kind: list(found) for kind, found in words.items()}


def license_of(model: str) -> str | None:
    """The licence that the model's card names, if there is one."""
    card = (bundled_folder() if model in BUNDLED else Path(model)) / "README.md"
    if not card.is_file():
        return None
    try:
        found = ModelCard(decode_text(read_whole(card, TEXT_LIMIT)), ignore_metadata_errors=True).data.get("license")
    except Exception:  # a README that is no card, or is damaged
        return None
    names = found if isinstance(found, list) else [found]
    return ", ".join(map(str, names))[:1000] if found else None
