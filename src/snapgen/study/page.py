"""The page of a human study: pictures drawn, one HTML file that needs nothing else, and the key to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

from PIL import Image

from snapgen.evaluation import EvaluationSettings
from snapgen.evaluation.generation import Request, draw_pictures, identity_of, make_manifest
from snapgen.files import atomic_file, fingerprint
from snapgen.pictures import data_url, encode_picture
from snapgen.pipeline.text_to_image import SnapGenPipeline
from snapgen.study.votes import KEY, MODELS, PAGE, QUESTIONS, Key, name_pictures

LOSSLESS = 512  # px; smaller pictures are shown enlarged, where lossy compression would be seen
STUDY = "{{study}}"  # what the template has where the study's data belong


def make_study(
    models: Sequence[str],
    load: Callable[[str], SnapGenPipeline],
    prompts: Sequence[str],
    questions: Sequence[str],
    seed: int,
    steps: int | None,
    folder: Path,
    progress: Callable[[str], None],
) -> Key:
    """Draws `prompts` with both `models` and writes the page and its key to `folder`; goes on there if interrupted.

    Both models draw a prompt from the same seed. A folder with another study is refused with a ValueError.
    """
    asked = {"prompts": list(prompts), "questions": list(questions), "seed": seed}
    requests = [Request(f"{i:04d}", prompt, seed + i) for i, prompt in enumerate(prompts)]
    identities = []
    for side, model in zip(MODELS, models, strict=True):
        pipeline = load(model)
        manifest = make_manifest("study", pipeline, EvaluationSettings(steps=steps), [seed], asked["prompts"])
        identities.append(identity_of(manifest))
        draw_pictures(pipeline, requests, folder / "pictures" / side, manifest, progress, more=asked)
    digest = fingerprint([identities, asked])
    key = Key(
        study=digest[:16],
        models={"a": models[0], "b": models[1]},
        prompts=tuple(prompts),
        questions=tuple(questions),
        pictures=name_pictures(len(prompts), digest),
    )
    with atomic_file(folder / KEY) as temporary:
        temporary.write_text(key.model_dump_json(indent=1) + "\n", encoding="utf-8")
    with atomic_file(folder / PAGE) as temporary:
        temporary.write_text(study_page(key, folder), encoding="utf-8")
    return key


def study_page(key: Key, folder: Path) -> str:
    """The page as HTML, with the pictures in `folder`; it names no model."""
    pairs: list[dict[str, object]] = []
    for index, prompt in enumerate(key.prompts):
        pictures = [
            {"id": name, "src": _picture_url(folder / "pictures" / fact.model / f"{index:04d}.png")}
            for name, fact in key.pictures.items()
            if fact.prompt == index
        ]
        pairs.append({"prompt": prompt, "pictures": pictures})
    questions = {question: QUESTIONS[question] for question in key.questions}
    data = json.dumps({"study": key.study, "questions": questions, "pairs": pairs}, ensure_ascii=False)
    template = files("snapgen.study").joinpath(PAGE).read_text(encoding="utf-8")
    # Within a script element only "</" and "<!--" mean something to HTML; JSON can write "<" otherwise.
    return template.replace(STUDY, data.replace("<", "\\u003c"))


def _picture_url(path: Path) -> str:
    """The picture file `path` as a URL that holds it, without the text that a PNG carries."""
    with Image.open(path) as image:
        lossless = max(image.size) <= LOSSLESS
        return data_url(encode_picture(image.convert("RGB"), "webp", lossless=lossless, quality=95), "webp")
