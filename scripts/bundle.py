"""Turn finished runs into the two models that ship in the package.

    python scripts/bundle.py runs/mini/flow/model runs/mini/step/model [--autoencoder runs/mini/decoder/model]
    python scripts/bundle.py mini-base runs/mini/step/model    # a new few-step model for the present base
    python scripts/bundle.py --report runs/reproduce/report.json    # the models that `snapgen reproduce` made
    python scripts/bundle.py --words    # only the words that the present models have learned

Writes src/snapgen/bundled/ in half precision: the folders of the first model, `mini-base`; the UNet of the second,
`mini`, in few_steps/ (it shares the rest); and `provenance.json` with the recipes and versions of all stages behind
them. `model_index.json` lists the words that each model has learned, which follow from its recipe. With --report, also
copies the report there, fills the marked blocks of the README (a summary of the scores) and of the model card (all
scores), and regenerates the galleries in docs/.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from snapgen.evaluation.generation import model_hash
from snapgen.files import atomic_folder, write_text
from snapgen.models.autoencoder import SnapGenAutoencoder, same_latents
from snapgen.pipeline.bundled import BUNDLED as NAMES
from snapgen.pipeline.text_to_image import SnapGenPipeline
from snapgen.pipeline.words import KEY
from snapgen.reproduce.report import Report, card
from snapgen.train.health import unhealthy
from snapgen.world.source import SceneSettings
from snapgen.world.words import words_of_captions

ROOT = Path(__file__).resolve().parent.parent
BUNDLED = ROOT / "src" / "snapgen" / "bundled"
README = ROOT / "README.md"
ASKED = {  # what each category of the benchmark asks for
    "single": "one thing",
    "color": "a thing in a colour",
    "counting": "several of a kind",
    "two": "two things",
    "position": "one beside or above another",
    "attribution": "two things in a colour each",
}
LARGEST = 64 * 10**6  # bytes, of all files together
BLOCK = ("<!-- report:begin -->", "<!-- report:end -->")  # around the text that comes from a report


def stage_provenance(model: Path) -> dict[str, Any]:
    """The provenance of a pipeline folder and of the stages that it was built on, found by its recipe's paths.

    "earlier" lists the runs whose weights it started from, latest first. The NAMES mean the models bundled until now,
    whose provenance includes that of their stages.
    """
    bundled = read_provenance(BUNDLED) if (BUNDLED / "provenance.json").exists() else {}
    if str(model) in NAMES:
        return {name: stage for name, stage in bundled.items() if name != "step"}
    own = read_provenance(model)
    stages: dict[str, Any] = {own["recipe"]["stage"]: own, "earlier": []}
    for name in ("autoencoder", "text"):
        source = own["recipe"][name]
        stages[name] = bundled[name] if source in NAMES else read_provenance(place(source, model))
    if own["recipe"]["autoencoder"] in NAMES and "decoder" in bundled:
        stages["decoder"] = bundled["decoder"]
    teacher = own["recipe"].get("teacher")
    if teacher not in (None, *NAMES) and place(teacher, model).is_dir():
        stages["teacher"] = read_provenance(place(teacher, model))
    before = own["recipe"].get("initial")
    while before not in (None, *NAMES):
        run = read_provenance(place(before, model))
        stages["earlier"].append(run)
        before = run["recipe"].get("initial")
    if before in NAMES:
        stages["earlier"] += [next(iter(bundled.values())), *bundled["earlier"]]  # its own stage is the first
    return stages


def learned_words(run: dict[str, Any]) -> dict[str, list[str]] | None:
    """The words in the captions of the scenes of a `run`, given its provenance; None if it saw no scenes."""
    data = run["recipe"].get("data", {})
    if data.get("source") != "scenes":
        return None
    return words_of_captions(SceneSettings.model_validate_json(json.dumps(data)))


def write_words() -> None:
    """Write the words of the bundled models into their `model_index.json`, and into the card."""
    provenance = read_provenance(BUNDLED)
    for folder, run in ((BUNDLED, next(iter(provenance.values()))), (BUNDLED / NAMES["mini"], provenance["step"])):
        index = folder / "model_index.json"
        content = json.loads(index.read_text()) | {KEY: learned_words(run)}
        write_text(json.dumps(content, indent=2, sort_keys=True), index)
    fill(BUNDLED / "README.md", card(json.loads((BUNDLED / "report.json").read_text())))


def place(source: str, model: Path) -> Path:
    """The folder that the recipe of `model` calls `source`, relative to its run if `snapgen reproduce` made it."""
    beside = model.resolve().parents[1] / source
    return beside if beside.is_dir() else Path(source)


def read_provenance(folder: Path) -> dict[str, Any]:
    """What `snapgen train` wrote beside the model in `folder`."""
    content: dict[str, Any] = json.loads((folder / "provenance.json").read_text())
    return content


def check_same(networks: tuple[torch.nn.Module, torch.nn.Module], origin: Path) -> None:
    """Refuse to ship two models if the second would run with a network that is not its own."""
    first, second = (network.state_dict() for network in networks)
    if first.keys() != second.keys() or not all(torch.equal(tensor, second[key]) for key, tensor in first.items()):
        raise SystemExit(f"{origin}: its {type(networks[1]).__name__} differs from that of the base")


def check_same_latents(base: SnapGenAutoencoder, other: SnapGenAutoencoder, origin: Path) -> None:
    """Refuse an autoencoder with another encoder or scale than the base's: the UNets generate the base's latents."""
    if not same_latents(base, other):
        raise SystemExit(f"{origin}: its latents differ from those of the base")


def forget_place(file: Path) -> None:
    """Remove from a configuration the path on this machine that it was read from."""
    content = json.loads(file.read_text())
    content.pop("_name_or_path", None)
    file.write_text(json.dumps(content, indent=2) + "\n")


def fill(file: Path, lines: list[str]) -> None:
    """Put `lines` of Markdown into the marked block of `file`."""
    before, begin, rest = file.read_text().partition(BLOCK[0])
    _, end, after = rest.partition(BLOCK[1])
    if not (begin and end):
        raise SystemExit(f"{file} has no block between {BLOCK[0]} and {BLOCK[1]}")
    file.write_text(before + begin + "\n" + "\n".join(lines) + "\n" + end + after)


def headline(report: Report) -> list[str]:
    """The README's summary of a report's two models: lines of a Markdown list."""
    models = {model["stage"]: model for model in report["models"]}
    few, base = models["step"], models.get("distill", models["flow"])
    nouns = report["data"]["nouns"]
    things = f"the {len(nouns)} things" if nouns else "all things"
    asked = {f"{ASKED[name]} ({score:.0%})": score >= 0.5 for name, score in few["categories"].items()}
    good, bad = (", ".join(text for text, right in asked.items() if right == wanted) for wanted in (True, False))
    return [
        f"- On our benchmark, {few['count']} unseen prompts about {things} that it knows, `mini` gets "
        f"{few['score']:.0%} right in {few['steps']} steps, `mini-base` {base['score']:.0%} in {base['steps']}.",
        f"- More often right than wrong: {good or 'nothing'}.",
        f"- More often wrong than right: {bad or 'nothing'}.",
    ]


def scored_models(report: Report, folder: Path) -> tuple[Path, Path]:
    """The two models to ship from the `folder` of a reproduction; refuses models that its report does not score."""
    hashes = {model["stage"]: model["model_sha256"] for model in report["models"]}
    if "step" not in hashes:
        raise SystemExit(f"{folder}: the report scores no few-step model")
    models = folder / ("distill" if "distill" in hashes else "flow") / "model", folder / "step" / "model"
    for model in models:
        if model_hash(SnapGenPipeline.from_pretrained(model)) != hashes[model.parent.name]:
            raise SystemExit(f"{model}: the report scores another model")
    return models


def write_bundle(base: SnapGenPipeline, few: SnapGenPipeline, more: dict[str, Any]) -> int:
    """Replace the folder by two models that share all but their UNet; `more`: further JSON files, by name.

    Returns its size in bytes. The model card is kept.
    """
    card_file = BUNDLED / "README.md"
    written = card_file.read_bytes() if card_file.exists() else None
    with atomic_folder(BUNDLED) as folder:
        base.save_pretrained(folder)
        few.save_config(folder / NAMES["mini"])
        few.unet.save_pretrained(folder / NAMES["mini"] / "unet")
        for file in [*folder.rglob("config.json"), *folder.rglob("model_index.json")]:
            forget_place(file)
        for name, content in more.items():
            (folder / name).write_text(json.dumps(content, indent=1))
        if written is not None:
            (folder / "README.md").write_bytes(written)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        if size > LARGEST:
            raise SystemExit(f"the weights take {size / 1e6:.1f} MB, at most {LARGEST / 1e6:.0f} may ship")
    return size


def publish(report: Report) -> None:
    """Write `report` into the README and the model card, and generate the new models' galleries."""
    fill(README, headline(report))
    fill(BUNDLED / "README.md", card(report))
    for name, picture in (("mini", "gallery.png"), ("mini-base", "gallery_base.png")):
        command = [sys.executable, "scripts/gallery.py", "--model", name, "--out", f"docs/{picture}"]
        subprocess.run(command, cwd=ROOT, check=True)


def main() -> None:
    """Read the command line and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, nargs="?", help="pipeline folder of a flow or distill stage, or mini-base")
    parser.add_argument("few_steps", type=Path, nargs="?", help="pipeline folder of a step stage")
    parser.add_argument("--autoencoder", type=Path, help="use this autoencoder (with the same encoder and scale)")
    parser.add_argument("--report", type=Path, help="report.json of `snapgen reproduce`, instead of the two models")
    parser.add_argument("--words", action="store_true", help="write only the list of the words that they have learned")
    options = parser.parse_args()
    if options.words:
        write_words()
        return
    report: Report | None = None
    if options.report is not None:
        if options.base is not None or options.autoencoder is not None:
            parser.error("--report names the models and their autoencoder: omit the other arguments")
        report = json.loads(options.report.read_text())
        options.base, options.few_steps = scored_models(report, options.report.parent)
    elif options.few_steps is None:
        parser.error("expected two models, or --report")
    first = BUNDLED if str(options.base) in NAMES else options.base

    base, few = (SnapGenPipeline.from_pretrained(model, dtype=torch.float16) for model in (first, options.few_steps))
    check_same((base.text_encoder, few.text_encoder), options.few_steps)
    check_same_latents(base.vae, few.vae, options.few_steps)
    provenance = stage_provenance(options.base) | {"step": read_provenance(options.few_steps)}
    if options.autoencoder is not None:
        autoencoder = SnapGenAutoencoder.from_pretrained(options.autoencoder, dtype=torch.float16)
        check_same_latents(base.vae, autoencoder, options.autoencoder)
        base.register_modules(vae=autoencoder)
        provenance["decoder"] = read_provenance(options.autoencoder)
    for pipeline, run in ((base, next(iter(provenance.values()))), (few, provenance["step"])):
        pipeline.register_to_config(**{KEY: learned_words(run)})
        for name, part in pipeline.components.items():
            if isinstance(part, torch.nn.Module) and (found := unhealthy(part.state_dict())):
                raise SystemExit(f"{name} of {pipeline.config._name_or_path} in half precision: {found}")
    more = {"provenance.json": provenance} | ({} if report is None else {"report.json": report})
    size = write_bundle(base, few, more)
    print(f"{BUNDLED}: {size / 1e6:.1f} MB")
    if report is not None:
        publish(report)


if __name__ == "__main__":
    main()
