"""What `snapgen generate` runs a model with: torch, or a bundle of `snapgen export` with ONNX Runtime alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from snapgen.cli.options import check_installed
from snapgen.cli.pictures import PictureRequest
from snapgen.cli.start import StartPicture
from snapgen.pipeline.bundled import BUNDLED
from snapgen.pipeline.inputs import check_text_encoders
from snapgen.pipeline.load import load_adapters, load_pipeline
from snapgen.pipeline.words import KEY, Words, checked_words
from snapgen.runtime.bundle import BUNDLE
from snapgen.web.serve import APP, MODEL

if TYPE_CHECKING:
    from PIL.Image import Image

    from snapgen.pipeline.text_to_image import SnapGenPipeline
    from snapgen.runtime.pipeline import BundlePipeline

BATCH = 8  # pictures generated at once with torch: bounds memory, however many are requested


@dataclass(frozen=True)
class Wishes:
    """How to generate; None stands for the model's own value."""

    steps: int | None = None
    guidance: float | None = None
    interval: tuple[float, float] | None = None
    width: int | None = None
    height: int | None = None
    encoders: list[str] | None = None


class Engine(Protocol):
    """A loaded model."""

    batch: int  # pictures generated at once
    steps: int  # of a picture from noise alone
    taken: int  # of those, the steps that are taken
    guidance: float
    words: Words | None  # the only ones that the model has learned, if it lists them
    listing: str  # where to find them

    def generate(self, batch: Sequence[PictureRequest], advance: Callable[[], object]) -> list[Image | None]:
        """The pictures of `batch`, each from its own seed, None for one that is not finite; `advance` counts steps."""
        ...


class TorchEngine:
    """A pipeline in torch."""

    def __init__(
        self, model: str, wishes: Wishes, lora: Path | None, start: StartPicture | None, optimize: bool
    ) -> None:
        self.pipeline: SnapGenPipeline = load_pipeline(model, wishes.encoders)
        if lora is not None:
            load_adapters(self.pipeline, lora)
        if start is not None:
            self.pipeline = start.pipeline_of(self.pipeline)
        if optimize:
            self.pipeline.optimize()
        config = self.pipeline.config
        self.batch = BATCH
        self.steps = config.default_num_inference_steps if wishes.steps is None else wishes.steps
        self.guidance = config.default_guidance_scale if wishes.guidance is None else wishes.guidance
        self.words: Words | None = checked_words(config.get(KEY), model)
        self.listing = f"'snapgen data words{'' if model == next(iter(BUNDLED)) else f' {model}'}'"
        given = {
            "num_inference_steps": wishes.steps,
            "guidance_scale": wishes.guidance,
            "guidance_interval": wishes.interval,
            "width": wishes.width,
            "height": wishes.height,
            "text_encoders": wishes.encoders,
        }
        self.settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        self.taken = self.steps
        if start is not None:
            self.taken = start.steps_of(self.steps)
            self.settings |= start.settings

    def generate(self, batch: Sequence[PictureRequest], advance: Callable[[], object]) -> list[Image | None]:
        """All pictures of `batch` at once."""
        import numpy as np
        import torch

        def on_step(pipeline: SnapGenPipeline, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            advance()
            return tensors

        made: Any = self.pipeline(
            prompt=[request.prompt for request in batch],
            generator=[torch.Generator("cpu").manual_seed(request.seed) for request in batch],
            callback_on_step_end=on_step,
            output_type="np",
            return_dict=False,
            **self.settings,
        )[0]
        convert = self.pipeline.image_processor.numpy_to_pil
        return [convert(picture)[0] if np.isfinite(picture).all() else None for picture in made]


class OnnxEngine:
    """A bundle in ONNX Runtime."""

    def __init__(self, folder: Path, wishes: Wishes) -> None:
        from snapgen.runtime.onnx import open_bundle

        self.pipeline: BundlePipeline = open_bundle(folder)
        bundle, self.wishes, self.batch = self.pipeline.bundle, wishes, 1
        texts: dict[str, str] = {text.network: text.tokenizer for text in bundle.texts if text.tokenizer is not None}
        check_text_encoders(wishes.encoders, texts)
        self.pipeline.latent_shape(wishes.height, wishes.width)
        own = bundle.sampling
        self.steps = self.taken = own.steps if wishes.steps is None else wishes.steps
        self.guidance = own.guidance if wishes.guidance is None else wishes.guidance
        self.words: Words | None = bundle.known_words
        self.listing = f"known_words in {folder / BUNDLE}"

    def generate(self, batch: Sequence[PictureRequest], advance: Callable[[], object]) -> list[Image | None]:
        """The pictures of `batch`, one after another."""
        wishes = self.wishes
        return [
            self.pipeline(
                request.prompt,
                request.seed,
                self.steps,
                self.guidance,
                wishes.interval or (0.0, 1.0),
                wishes.height,
                wishes.width,
                wishes.encoders,
                advance,
            )
            for request in batch
        ]


def find_bundle(model: str, torch_only: Mapping[str, Any]) -> Path:
    """The folder of the bundle `model`. The default model is there as one where the web app is built, which needs it.

    ValueError if there is no such bundle, if ONNX Runtime is not installed, or if an option needs torch.
    torch_only: the values of options that bundles cannot follow, None if they are not given.
    """
    check_installed(("onnxruntime",), "--runtime onnx needs", "onnx")
    folder = APP / MODEL if model == next(iter(BUNDLED)) else Path(model)
    if not (folder / BUNDLE).is_file():
        if model in BUNDLED:
            made = f"`snapgen export {model} FOLDER --target onnx` makes one; then --model FOLDER"
            raise ValueError(f"--runtime onnx runs bundles, and there is none of '{model}' here: {made}")
        raise ValueError(f"'{model}' is not a bundle: it has no {BUNDLE}; `snapgen export` makes one")
    for option, value in torch_only.items():
        if value is not None:
            raise ValueError(f"{option} cannot be used with --runtime onnx: it needs --runtime torch")
    return folder
