"""`snapgen generate`: generate pictures from prompts. Bad options are rejected before torch is imported."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snapgen.cli.options import LARGEST_SEED, SIZES, check_range, parse_interval
from snapgen.cli.pictures import PictureRequest, choose_destination, save_picture
from snapgen.cli.progress import progress_bar
from snapgen.cli.start import StartPicture, read_start
from snapgen.files import read_prompts
from snapgen.messages import one_line
from snapgen.pipeline.bundled import BUNDLED
from snapgen.pipeline.inputs import MAX_STEPS
from snapgen.pipeline.load import check_model_name, load_adapters, load_pipeline
from snapgen.pipeline.words import KEY, checked_words, unknown_words

if TYPE_CHECKING:
    from PIL.Image import Image

    from snapgen.pipeline.text_to_image import SnapGenPipeline

BATCH = 8  # pictures generated at once: bounds memory, however many are requested
NAMED_WORDS, NAMED_LETTERS = 10, 30  # how many unknown words a warning names, and how much of each


def generate(
    out: Annotated[
        str, typer.Option("-o", "--out", metavar="OUT", help="A file for one picture, a folder for several.")
    ],
    prompt: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT...", help="What to show; '' leaves it to the model.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", metavar="FILE", help="A text file of further prompts, one per line.")
    ] = None,
    model: Annotated[
        str, typer.Option(metavar="NAME|PATH", help="'mini', 'mini-base', a model folder, or a hub name.")
    ] = next(iter(BUNDLED)),
    steps: Annotated[
        int | None, typer.Option(help="Steps from noise to picture; the model's own if not given.")
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(help="How strictly to follow the prompt, from 1, no guidance; the model's own if not given."),
    ] = None,
    guidance_interval: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Lowest and highest noise level, from 0 to 1, at which guidance is on."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same picture.")] = 0,
    count: Annotated[int, typer.Option(help="Pictures per prompt, with seeds from --seed up.")] = 1,
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Width and height in pixels; the model's own if not given.")
    ] = None,
    encoders: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="Load and use only these of text_encoder, text_encoder_2, text_encoder_3; all by default.",
        ),
    ] = None,
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A picture to start from, resized to --size.")
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="How much to change --image, up to 1: nothing of it is kept; 0.6 if not given.")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to change --image: white; black stays.")
    ] = None,
    lora: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Adapters that `snapgen train` trained with a lora: setting.")
    ] = None,
    optimize: Annotated[
        bool, typer.Option("--optimize", help="Compute in bf16, compiled on a GPU: faster, with other rounding.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of file names.")] = False,
) -> None:
    """Generate pictures from prompts; prints their file names."""
    texts = [*(prompt or []), *(read_prompts(prompts) if prompts else [])]
    if not texts:
        raise ValueError("no prompt given: say what to show, or name a file of prompts with --prompts")
    check_range("--steps", steps, 1, MAX_STEPS)
    check_range("--guidance", guidance, 0, 100)
    interval = parse_interval(guidance_interval) if guidance_interval is not None else None
    check_range("--count", count, 1, 10_000)
    check_range("--seed", seed, 0, LARGEST_SEED - count + 1)
    width, height = parse_size(size) if size is not None else (None, None)
    check_model_name(model)
    requests = [PictureRequest(index, text, seed + k) for index, text in enumerate(texts) for k in range(count)]
    destination = choose_destination(out, len(requests))
    start_picture = read_start(image, strength, mask)

    from snapgen.flow.guidance import has_guidance

    names = None if encoders is None else [name.strip() for name in encoders.split(",")]
    pipeline = load_pipeline(model, names)
    if lora is not None:
        load_adapters(pipeline, lora)
    if start_picture is not None:
        pipeline = start_picture.pipeline_of(pipeline)
    if optimize:
        pipeline.optimize()
    given = {
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "guidance_interval": interval,
        "width": width,
        "height": height,
        "text_encoders": names,
    }
    settings = {name: value for name, value in given.items() if value is not None}
    facts = describe_run(pipeline, model, settings, start_picture)
    steps_taken = facts["steps"]
    if start_picture is not None:
        steps_taken = start_picture.steps_of(steps_taken)
        settings |= start_picture.settings
    if interval is not None and not has_guidance(facts["guidance"]):
        guidance_is = f"guidance is {facts['guidance']:g}, there is no guidance"
        warnings.warn(f"--guidance-interval has no effect: {guidance_is}", stacklevel=1)
    if lora is None:  # adapters bring words of their own
        warn_of_unknown_words(pipeline, model, texts)
    pictures: list[dict[str, Any]] = []
    try:
        with progress_bar("generating", math.ceil(len(requests) / BATCH) * steps_taken, "steps") as advance:
            for start in range(0, len(requests), BATCH):
                batch = requests[start : start + BATCH]
                for request, made in zip(batch, generate_batch(pipeline, batch, settings, advance), strict=True):
                    if made is None:
                        raise ValueError(
                            f"the picture of '{one_line(request.prompt, 40)}' with seed {request.seed} is not finite: "
                            f"{model} does not work with these settings, and no further picture is written"
                        )
                    path = destination.file_for(request)
                    picture = {"prompt": request.prompt, "seed": request.seed, "size": f"{made.width}x{made.height}"}
                    save_picture(made, path, {name: str(value) for name, value in (picture | facts).items()})
                    pictures.append({"path": str(path)} | picture)
    finally:  # whatever stops the work, the finished pictures are named
        if pictures:
            print_pictures(pictures, facts, as_json)


def warn_of_unknown_words(pipeline: SnapGenPipeline, model: str, texts: list[str]) -> None:
    """Warn if `pipeline` lists the words that it has learned and `texts` contain others."""
    words = checked_words(pipeline.config.get(KEY), model)
    if words is not None and (unknown := [word[:NAMED_LETTERS] for word in unknown_words(texts, words)]):
        more = f" and {len(unknown) - NAMED_WORDS} more" if len(unknown) > NAMED_WORDS else ""
        warnings.warn(
            f"{model} has not learned: {', '.join(unknown[:NAMED_WORDS])}{more}; "
            f"'snapgen data words{'' if model == next(iter(BUNDLED)) else f' {model}'}' lists what it knows",
            stacklevel=1,
        )


def print_pictures(pictures: list[dict[str, Any]], facts: dict[str, Any], as_json: bool) -> None:
    """Print the file names of `pictures`, or with `as_json` all that is known about them."""
    if as_json:
        typer.echo(json.dumps(facts | {"pictures": pictures}, ensure_ascii=False))
    else:
        for picture in pictures:
            typer.echo(picture["path"])


def parse_size(text: str) -> tuple[int, int]:
    """The width and height in "WxH"; ValueError unless the networks can generate both."""
    match = re.fullmatch(r"(\d{1,9})x(\d{1,9})", text, flags=re.ASCII)
    if not match:
        raise ValueError(f"--size {text} is not of the form WIDTHxHEIGHT, for example 256x256")
    width, height = int(match[1]), int(match[2])
    if width not in SIZES or height not in SIZES:
        allowed = f"multiples of {SIZES.step} from {SIZES[0]} to {SIZES[-1]}"
        raise ValueError(f"--size {text} cannot be used: width and height must be {allowed}")
    return width, height


def describe_run(
    pipeline: SnapGenPipeline, model: str, settings: dict[str, Any], start: StartPicture | None
) -> dict[str, Any]:
    """What all pictures of a run share: the given settings, and the pipeline's own for the rest."""
    from snapgen import __version__

    steps = settings.get("num_inference_steps", pipeline.config.default_num_inference_steps)
    guidance = settings.get("guidance_scale", pipeline.config.default_guidance_scale)
    facts = {"steps": steps, "guidance": guidance, "model": model, "snapgen": __version__}
    if "guidance_interval" in settings:
        facts["guidance_interval"] = ",".join(map(str, settings["guidance_interval"]))
    if "text_encoders" in settings:
        facts["encoders"] = ",".join(settings["text_encoders"])
    return facts if start is None else facts | start.facts


def generate_batch(
    pipeline: SnapGenPipeline, batch: list[PictureRequest], settings: dict[str, Any], advance: Callable[[], None]
) -> list[Image | None]:
    """The pictures of `batch`, each from its own seed, None where one is not finite; `advance` is called every step."""
    import numpy as np
    import torch

    def on_step(pipeline: SnapGenPipeline, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        advance()
        return tensors

    made: Any = pipeline(
        prompt=[request.prompt for request in batch],
        generator=[torch.Generator("cpu").manual_seed(request.seed) for request in batch],
        callback_on_step_end=on_step,
        output_type="np",
        return_dict=False,
        **settings,
    )[0]
    convert = pipeline.image_processor.numpy_to_pil
    return [convert(picture)[0] if np.isfinite(picture).all() else None for picture in made]
