"""Makes a human study: generates both models' pictures, and writes the self-contained HTML page and its key."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

from snapgen.evaluation import EvaluationSettings
from snapgen.evaluation.generation import Request, generate_pictures, identity_of, make_manifest
from snapgen.files import atomic_file, fingerprint
from snapgen.messages import Notify
from snapgen.pictures import data_url, encode_picture, read_rgb
from snapgen.pipeline.text_to_image import SnapGenPipeline
from snapgen.study.votes import KEY, MODELS, PAGE, QUESTIONS, Key, name_pictures

LOSSLESS = 512  # px; up to this size pictures are shown enlarged, and lossy compression would be visible
STUDY = "{{study}}"  # the template's placeholder for the study's data


def make_study(
    models: Sequence[str],
    load: Callable[[str], SnapGenPipeline],
    prompts: Sequence[str],
    questions: Sequence[str],
    seed: int,
    steps: int | None,
    folder: Path,
    progress: Notify,
) -> Key:
    """Generate `prompts` with both `models`, write the page and its key to `folder`; an interrupted run continues.

    Both models use the same seed for a prompt. ValueError if the folder holds another study.
    """
    asked = {"prompts": list(prompts), "questions": list(questions), "seed": seed}
    requests = [Request(f"{i:04d}", prompt, seed + i) for i, prompt in enumerate(prompts)]
    identities = []
    for side, model in zip(MODELS, models, strict=True):
        pipeline = load(model)
        manifest = make_manifest("study", pipeline, EvaluationSettings(steps=steps), [seed], asked["prompts"])
        identities.append(identity_of(manifest))
        generate_pictures(pipeline, requests, folder / "pictures" / side, manifest, progress, more=asked)
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
    """The page as HTML with the pictures in `folder`; it does not name the models."""
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
    # Inside a script element, HTML only interprets "</" and "<!--"; JSON can escape "<".
    return template.replace(STUDY, data.replace("<", "\\u003c"))


def _picture_url(path: Path) -> str:
    """The picture file `path` as a data URL, without the text that a PNG carries."""
    picture = read_rgb(path)
    lossless = max(picture.size) <= LOSSLESS
    return data_url(encode_picture(picture, "webp", lossless=lossless, quality=95), "webp")
