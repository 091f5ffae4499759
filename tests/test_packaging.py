"""The package as it is shipped: the lock, the wheel's contents, the lazy public face."""

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import snapgen

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return {normal(name): version for name, _, version in (line.partition("==") for line in lines if "==" in line)}


def test_the_lock_pins_every_dependency() -> None:
    assert requirements("", "train", "eval", "onnx", "export", "dev") <= pins().keys()
    assert pins()["torch"] == "2.13.0"


def requirements(*extras: str) -> set[str]:
    """The names of what the package needs by itself (""), or with an extra."""
    found = [PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"] for extra in extras]
    return {normal(re.split(r"[<>=!~\[ ]", requirement, maxsplit=1)[0]) for part in found for requirement in part}


def imported_packages() -> set[str]:
    """What the source imports that neither Python nor this package brings, by its name on the package index."""
    modules = set()
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules.add(node.module)
    brought = packages_distributions()
    tops = {"tensorboard" if module == "torch.utils.tensorboard" else module.split(".")[0] for module in modules}
    tops -= sys.stdlib_module_names | {"snapgen"}
    return {normal(name) for top in tops for name in brought.get(top, [top])}


def test_dependencies_and_extras_are_what_the_source_imports() -> None:
    """No extra without code that uses it, no import that nothing installs."""
    # torch-fidelity: asked for by name where it is needed; huggingface-hub: diffusers and transformers are built on it.
    imported = imported_packages() - {"torch-fidelity", "huggingface-hub"}
    # onnxscript: torch's exporter imports it, scikit-learn: coremltools, for its palettes.
    assert imported | {"onnxscript", "scikit-learn"} == requirements("", "train", "eval", "onnx", "export")


def test_training_the_decoder_needs_no_other_extra() -> None:
    """LPIPS finds its linear layers in torchmetrics, without importing it."""
    assert "torchmetrics" in requirements("train")


def test_the_lock_installs_with_any_build_of_torch() -> None:
    assert not [version for version in pins().values() if "+" in version]


@pytest.mark.slow
def test_the_wheel_holds_all_of_the_package(tmp_path: Path) -> None:
    source = tmp_path / "source"
    left_out = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", source / "src", ignore=left_out)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    expected = {str(path.relative_to(source / "src")) for path in (source / "src").rglob("*") if path.is_file()}
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", tmp_path, source], check=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert expected <= packed
    assert {name.split("/")[0] for name in packed} == {"snapgen", f"snapgen-{PROJECT['version']}.dist-info"}


def test_the_public_face_is_complete() -> None:
    assert dir(snapgen) == sorted(snapgen.__all__)
    assert snapgen.__version__ == PROJECT["version"]
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = snapgen.nonsense


@pytest.fixture
def bundle(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("bundle")


def test_a_model_built_on_the_bundled_one_carries_its_provenance(
    bundle: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recipes that say "mini" name no folder: what the bundled model came from stands in its own provenance."""

    def write(name: str, content: dict[str, Any]) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "provenance.json").write_text(json.dumps(content))
        return folder

    def run(stage: str, **recipe: str) -> dict[str, Any]:
        return {"recipe": {"stage": stage} | recipe}

    parts = {"autoencoder": run("autoencoder"), "text": run("text"), "decoder": run("decoder")}
    before = {"distill": run("distill"), "earlier": [run("flow", seed="0")]} | parts
    monkeypatch.setattr(bundle, "BUNDLED", write("bundled", before | {"step": run("step")}))
    assert bundle.stage_provenance(Path("mini-base")) == before
    first = run("flow", autoencoder="mini", text="mini", initial="mini-base", seed="1")
    second = run("flow", autoencoder="mini", text="mini", initial=str(write("first", first)), seed="2")
    found = bundle.stage_provenance(write("second", second))
    assert found == {"flow": second, "earlier": [first, before["distill"], *before["earlier"]]} | parts
    text = run("text", seed="3")
    other = run("flow", autoencoder="mini", text=str(write("text", text)))
    (tmp_path / "runs" / "text").mkdir(parents=True)
    beside = run("flow", autoencoder="mini", text="text/model")
    write("runs/text/model", text)
    (tmp_path / "runs" / "flow").mkdir()
    assert bundle.stage_provenance(write("runs/flow/model", beside))["text"] == text
    assert bundle.stage_provenance(write("other", other)) == {"flow": other, "earlier": []} | parts | {"text": text}


def test_two_models_become_the_bundled_ones(
    bundle: ModuleType, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file, save_file

    from snapgen.pipeline.text_to_image import SnapGenPipeline

    runs = {}
    for name, stage, steps in (("flow", "flow", 7), ("step", "step", 1), ("other", "step", 1)):
        runs[name] = shutil.copytree(tiny_model, tmp_path / name)
        index = json.loads((runs[name] / "model_index.json").read_text()) | {"default_num_inference_steps": steps}
        (runs[name] / "model_index.json").write_text(json.dumps(index))
        recipe: dict[str, Any] = {"stage": stage, "autoencoder": f"{tmp_path}/flow", "text": f"{tmp_path}/flow"}
        if name == "flow":
            recipe["data"] = {"source": "scenes", "nouns": ["rose", "moon"]}
        (runs[name] / "provenance.json").write_text(json.dumps({"recipe": recipe}))
    for name, part in (("step", "unet"), ("other", "vae")):
        weights = runs[name] / part / "diffusion_pytorch_model.safetensors"
        save_file({key: tensor + 1 for key, tensor in load_file(weights).items()}, weights)
    monkeypatch.setattr(bundle, "BUNDLED", tmp_path / "bundled")
    monkeypatch.setattr("snapgen.pipeline.bundled.files", lambda package: tmp_path)

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["bundle.py", *arguments])
        bundle.main()

    with pytest.raises(SystemExit, match="other: its latents differ from those of the base"):
        run(str(runs["flow"]), str(runs["other"]))
    assert not (tmp_path / "bundled").exists()
    for base in (str(runs["flow"]), "mini-base"):
        run(base, str(runs["step"]))
        few, many = SnapGenPipeline.bundled(), SnapGenPipeline.bundled("mini-base")
        steps = [pipeline.config.default_num_inference_steps for pipeline in (few, many)]
        assert steps == [1, 7]
        weights = [next(pipeline.unet.parameters()) for pipeline in (few, many)]
        assert (weights[0] - weights[1] - 1).abs().max() < 1e-2
        provenance = json.loads((tmp_path / "bundled" / "provenance.json").read_text())
        assert list(provenance) == ["flow", "earlier", "autoencoder", "text", "step"]
        assert str(tmp_path) not in (tmp_path / "bundled" / "model_index.json").read_text()
        assert many.config.known_words["nouns"] == ["rose", "moon", "crescent moon"]
        assert few.config.known_words is None
    weights = runs["step"] / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({key: 1e5 * tensor for key, tensor in load_file(weights).items()}, weights)
    with pytest.raises(SystemExit, match=r"^unet of .*step in half precision: .* holds a value of inf"):
        run("mini-base", str(runs["step"]))


def test_a_report_names_its_models(bundle: ModuleType, tiny_model: Path, tmp_path: Path) -> None:
    from snapgen.evaluation.generation import model_hash
    from snapgen.pipeline.text_to_image import SnapGenPipeline

    stages = ("flow", "distill", "step")
    folders = [Path(shutil.copytree(tiny_model, tmp_path / stage / "model")) for stage in stages]
    right = model_hash(SnapGenPipeline.from_pretrained(tiny_model))
    models = [{"stage": stage, "model_sha256": right} for stage in stages]
    assert bundle.scored_models({"models": models}, tmp_path) == (folders[1], folders[2])
    assert bundle.scored_models({"models": [models[0], models[2]]}, tmp_path) == (folders[0], folders[2])
    with pytest.raises(SystemExit, match="the report scores no few-step model"):
        bundle.scored_models({"models": models[:2]}, tmp_path)
    models[2]["model_sha256"] = "0" * 64
    with pytest.raises(SystemExit, match="step/model: the report scores another model"):
        bundle.scored_models({"models": models}, tmp_path)


def test_the_words_follow_from_the_recipes(bundle: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `python scripts/bundle.py --words` writes is what ships."""
    for name in ("model_index.json", "few_steps/model_index.json", "provenance.json", "report.json", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(bundle.BUNDLED / name, tmp_path / name)
    for index in tmp_path.rglob("model_index.json"):
        content = json.loads(index.read_text())
        assert content.pop("known_words")
        index.write_text(json.dumps(content))
    shipped = bundle.BUNDLED
    monkeypatch.setattr(bundle, "BUNDLED", tmp_path)
    bundle.write_words()
    for name in ("model_index.json", "few_steps/model_index.json", "README.md"):
        assert (tmp_path / name).read_text() == (shipped / name).read_text()


def test_what_is_said_of_the_bundled_models_stands_in_their_report(bundle: ModuleType) -> None:
    report = json.loads((bundle.BUNDLED / "report.json").read_text())
    for file, said in ((bundle.README, bundle.headline), (bundle.BUNDLED / "README.md", bundle.card)):
        block = file.read_text().partition(f"{bundle.BLOCK[0]}\n")[2].partition(f"\n{bundle.BLOCK[1]}")[0]
        assert block.splitlines() == said(report)


def test_a_report_fills_the_marked_blocks(bundle: ModuleType, tmp_path: Path) -> None:
    for file in (bundle.README, bundle.BUNDLED / "README.md"):
        copy = shutil.copy(file, tmp_path / "copy.md")
        before, _, rest = file.read_text().partition(bundle.BLOCK[0])
        bundle.fill(Path(copy), ["scores"])
        after = rest.partition(bundle.BLOCK[1])[2]
        assert Path(copy).read_text() == f"{before}{bundle.BLOCK[0]}\nscores\n{bundle.BLOCK[1]}{after}"
    (tmp_path / "plain.md").write_text("nothing")
    with pytest.raises(SystemExit, match="plain.md has no block between"):
        bundle.fill(tmp_path / "plain.md", ["scores"])
