"""The suite from end to end on a tiny model, and what it refuses."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snapgen.cli.main import run
from snapgen.evaluation import SUITES, EvaluationSettings, check_suites, load_suite
from snapgen.evaluation.generation import model_hash
from snapgen.evaluation.suites import scenes
from snapgen.pipeline.load import load_pipeline
from snapgen.pipeline.text_to_image import SnapGenPipeline
from snapgen.world.judge import canaries
from snapgen.world.judge.detector import SceneDetector
from snapgen.world.prompts import renderer, scene_prompts
from snapgen.world.scene import CATEGORIES


@pytest.fixture(autouse=True)
def few_renders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "MIN_RENDERS", 2)


@pytest.fixture(scope="module")
def pipeline(tiny_model: Path) -> SnapGenPipeline:
    return load_pipeline(str(tiny_model))


def ignore(message: str) -> None:
    pass


@pytest.mark.slow
def test_the_command_from_end_to_end(tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", str(tiny_model), "--suite", "scenes", "--out", str(tmp_path), "--count", "2"]
    command += ["--steps", "1", "--size", "128", "--seeds", "3,4"]
    assert run([*command, "--json"]) == 0
    out, err = capfd.readouterr()
    printed = json.loads(out)
    assert "error" not in err  # the tiny tokenizer cuts prompts, and says so
    assert {"score", "categories", "detector", "count", "interval", "ceiling", "floor", "train"} <= printed.keys()
    opinion = printed["classifier"]
    assert tuple(opinion["categories"]) == tuple(opinion["accuracy"]) == CATEGORIES
    assert list(opinion["agreement"]) == ["all", *CATEGORIES]
    assert opinion["score"] < 0.1 and opinion["agreement"]["all"]["equal"] > 0.9  # both see nothing
    assert min(opinion["accuracy"].values()) >= 0.5
    assert opinion["floor"].keys() == printed["floor"].keys()
    assert tuple(printed["categories"]) == tuple(printed["detector"]) == CATEGORIES
    assert printed["count"] == 2 * 2 * len(CATEGORIES)
    assert printed["score"] < 0.1  # random weights draw nothing
    assert list(printed["by_seed"]) == ["3", "4"]
    assert min(printed["detector"].values()) >= 0.98

    folder = tmp_path / "scenes"
    report = json.loads((folder / "report.json").read_text())
    assert {key: value for key, value in report.items() if key != "pictures"} == printed
    assert report["manifest"]["seeds"] == [3, 4]
    assert (report["manifest"]["steps"], report["manifest"]["side"]) == (1, 128)
    assert len(report["pictures"]) == 2 * printed["count"]
    for picture in report["pictures"]:
        with Image.open(folder / picture["file"]) as image:
            assert image.size == (128, 128)
        assert picture["verdict"]["correct"] or picture["verdict"]["reason"]
        assert picture["opinion"]["correct"] or picture["opinion"]["reason"]
    assert (folder / "report.md").read_text().count("| counting |") == 2  # the detector's table and the classifier's
    for name in ("sheet.png", "plot.png"):
        with Image.open(folder / name) as image:
            assert image.format == "PNG"
    gallery = (folder / "gallery.html").read_text()
    assert gallery.count("<figure") == gallery.count("classifier: ") == len(report["pictures"])
    assert not re.search(r'(src|href)="(?!data:)', gallery)  # it needs nothing else

    # It continues where it was: what is there is kept, what is missing comes out the same.
    files = sorted((folder / "pictures").glob("*.png"))
    lost, kept = files[0], files[1]
    pixels, written = np.asarray(Image.open(lost)), kept.stat().st_mtime_ns
    lost.unlink()
    assert run(command) == 0
    assert capfd.readouterr().out == (folder / "report.md").read_text()
    assert np.array_equal(np.asarray(Image.open(lost)), pixels)
    assert kept.stat().st_mtime_ns == written

    # Other settings do not mix with these pictures.
    assert run([*command, "--guidance", "2"]) == 1
    assert "another model or other settings" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (
            ["--suite", "geneval2"],
            "there is no suite 'geneval2': use scenes, clip, imagereward, geneval, dpg, fid, psnr",
        ),
        (["--suite", "scenes,fad"], "there is no suite 'fad'"),
        (["--suite", "scenes,clip"], "clip needs --prompts FILE, a text file with one prompt per line"),
        (["--suite", "clip,imagereward", "--prompts", f"clip={__file__}"], "imagereward needs --prompts FILE"),
        (
            ["--suite", "geneval"],
            "geneval needs --prompts evaluation_metadata.jsonl, from github.com/djghosh13/geneval",
        ),
        (["--suite", "dpg"], "dpg needs --prompts FOLDER with prompts/ and dpg_bench.csv"),
        (["--suite", "clip", "--prompts", "nowhere.txt"], "--prompts nowhere.txt does not exist"),
        (["--suite", "clip", "--prompts", "clip=nowhere.txt"], "--prompts nowhere.txt does not exist"),
        (["--suite", "fid", "--prompts", "clip=a.txt"], "clip is not among the suites here that take it"),
        (["--suite", "fid,scenes", "--weights", "scenes=a"], "scenes is not among the suites here that take it"),
        (["--suite", "scenes", "--features", "inception"], "scenes: --features does not apply here, only to fid"),
        (["--suite", "psnr", "--steps", "5"], "psnr: --steps does not apply here, only to scenes, clip,"),
        (
            ["--suite", "psnr", "--guidance-interval", "0,1"],
            "psnr: --guidance-interval does not apply here, only to scenes",
        ),
        (["--suite", "scenes", "--guidance-interval", "0.8,0.2"], "--guidance-interval 0.8,0.2 is out of range"),
        (["--suite", "scenes", "--guidance-interval", "0.2"], "--guidance-interval 0.2 is not of the form LOW,HIGH"),
        (["--suite", "clip", "--count", "4"], "clip: --count does not apply here, only to scenes, fid, psnr"),
        (["--suite", "scenes", "--count", "1"], "--count 1 is out of range"),
        (["--suite", "scenes", "--seeds", "a"], "--seeds a is not of the form"),
        (["--suite", "scenes", "--seeds", "1,1"], "names a seed twice"),
        (["--suite", "scenes", "--seeds", "-1"], "--seeds -1 is out of range"),
        (["--suite", "scenes", "--size", "100"], "--size 100 cannot be used"),
        (["--suite", "scenes", "--steps", "0"], "--steps 0 is out of range"),
        (["--suite", "scenes", "--nouns", "cat,gizmo"], "--nouns cat,gizmo: gizmo is not in the vocabulary"),
        (["--suite", "scenes", "--nouns", "cat"], "at least two different nouns"),
        ([], "Missing option '--suite'"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], fragment: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", "mini", *arguments]) != 0
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("snapgen: error: ")
    assert err.count("\n") == 1
    assert fragment in err


def test_without_the_font_it_is_one_line(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("snapgen.world.font._FONT_FOLDERS", (str(tmp_path),))
    from snapgen.world.font import find_font

    find_font.cache_clear()
    try:
        assert run(["evaluate", str(tiny_model), "--suite", "scenes", "--out", str(tmp_path / "out")]) == 1
    finally:
        find_font.cache_clear()
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert "apt-get install fonts-noto-color-emoji" in err
    assert not (tmp_path / "out").exists()


def test_a_blind_detector_is_refused(pipeline: SnapGenPipeline, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no score: the detector reads only"):
        scenes.evaluate_scenes(pipeline, EvaluationSettings(count=2), tmp_path, ignore)  # at 32 px
    assert not list(tmp_path.iterdir())


def test_canaries() -> None:
    with pytest.raises(ValueError, match="shuffled pictures reach 50.0%"):
        canaries.check_floor({"shuffled": 0.5, "random": 0.0})
    truths = scene_prompts("heldout", 3)
    draw, detector = renderer(128), SceneDetector()
    sightings = [detector(draw.render(truth.scene)) for truth in truths]

    nothing = [detector(picture) for picture in canaries.random_pictures(128)]
    assert canaries.score_of(truths, sightings)["score"] == 1.0
    assert canaries.floor_of(truths, sightings, nothing) == {"shuffled": 0.0, "random": 0.0}


def test_suites_are_listed() -> None:
    check_suites(list(SUITES))
    assert all(callable(load_suite(name)) for name in SUITES)
    with pytest.raises(ValueError, match="use scenes, clip"):
        check_suites(["fad"])


def test_the_model_hash_is_of_weights_and_settings(pipeline: SnapGenPipeline, tiny_model: Path) -> None:
    other = load_pipeline(str(tiny_model))
    assert model_hash(other) == model_hash(pipeline)
    other.register_to_config(shift=2.0)
    assert model_hash(other) != model_hash(pipeline)
    other = load_pipeline(str(tiny_model))
    next(other.unet.parameters()).data.flatten()[0] += 1
    assert model_hash(other) != model_hash(pipeline)
