"""`snapgen generate`: what it draws, and what it refuses in one line before anything heavy is done or written."""

import json
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import snapgen
from snapgen.cli.engines import BATCH, TorchEngine
from snapgen.cli.main import run
from snapgen.files import read_prompts

FOLDER_WITHOUT_MODEL = "folder-without-model"


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with what the bad inputs below point at."""
    monkeypatch.chdir(tmp_path)
    # A pipeline that is asked for would be an error: everything here is refused before.
    monkeypatch.setitem(sys.modules, "snapgen.pipeline.text_to_image", None)
    (tmp_path / FOLDER_WITHOUT_MODEL).mkdir()
    (tmp_path / "a-file").write_text("")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00cat")
    (tmp_path / "blank.txt").write_text("\n  \n")
    Image.new("RGB", (8, 8), "white").save(tmp_path / "white.png")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["a cat", "-o", "a.png", "--steps", "0"], "--steps 0 is out of range"),
        (["a cat", "-o", "a.png", "--steps", "1000000"], "--steps 1000000 is out of range"),
        (["a cat", "-o", "a.png", "--guidance", "-1"], "--guidance -1.0 is out of range"),
        (["a cat", "-o", "a.png", "--guidance", "nan"], "--guidance nan is out of range"),
        (["a cat", "-o", "a.png", "--guidance", "inf"], "--guidance inf is out of range"),
        (
            ["a cat", "-o", "a.png", "--guidance-interval", ""],
            "--guidance-interval is not of the form LOW,HIGH, for example",
        ),
        (["a cat", "-o", "a.png", "--guidance-interval", "0.5"], "--guidance-interval 0.5 is not of the form LOW,HIGH"),
        (["a cat", "-o", "a.png", "--guidance-interval", "0,0.5,1"], "--guidance-interval 0,0.5,1 is not of the form"),
        (
            ["a cat", "-o", "a.png", "--guidance-interval", "low,high"],
            "--guidance-interval low,high is not of the form",
        ),
        (["a cat", "-o", "a.png", "--guidance-interval", "0.8,0.2"], "0 <= LOW <= HIGH <= 1"),
        (["a cat", "-o", "a.png", "--guidance-interval", "-0.1,0.5"], "0 <= LOW <= HIGH <= 1"),
        (["a cat", "-o", "a.png", "--guidance-interval", "0,1.5"], "0 <= LOW <= HIGH <= 1"),
        (["a cat", "-o", "a.png", "--guidance-interval", "nan,1"], "0 <= LOW <= HIGH <= 1"),
        (["a cat", "-o", "a.png", "--count", "0"], "--count 0 is out of range"),
        (["a cat", "-o", "a.png", "--seed", "-1"], "--seed -1 is out of range"),
        (["a cat", "-o", "a.png", "--seed", str(2**63)], "is out of range"),
        (["a cat", "-o", "a/", "--seed", str(2**63 - 1), "--count", "2"], "is out of range"),
        (["a cat", "-o", "a.png", "--size", ""], "WIDTHxHEIGHT"),
        (["a cat", "-o", "a.png", "--size", "big"], "WIDTHxHEIGHT"),
        (["a cat", "-o", "a.png", "--size", "128"], "WIDTHxHEIGHT"),
        (["a cat", "-o", "a.png", "--size", "-128x128"], "WIDTHxHEIGHT"),
        (["a cat", "-o", "a.png", "--size", "100x128"], "multiples of 32"),
        (["a cat", "-o", "a.png", "--size", "0x0"], "multiples of 32"),
        (["a cat", "-o", "a.png", "--size", "4128x128"], "multiples of 32"),
        (["a cat", "-o", "a.png", "--model", "unknown"], "there is no model 'unknown'"),
        (["a cat", "-o", "a.png", "--model", "./no/such/model"], "there is no model"),
        (["a cat", "-o", "a.png", "--model", ""], "'' is not a model folder"),
        (["a cat", "-o", "a.png", "--model", FOLDER_WITHOUT_MODEL], "no model_index.json"),
        (["a cat", "-o", "a.png", "--model", "a-file"], "'a-file' is a file"),
        (["-o", "a.png"], "no prompt given"),
        (["-o", "a.png", "--prompts", "blank.txt"], "no prompt given"),
        (["-o", "a.png", "--prompts", "missing.txt"], "missing.txt: no such file"),
        (["-o", "a.png", "--prompts", FOLDER_WITHOUT_MODEL], "is a directory"),
        (["-o", "a.png", "--prompts", "binary.txt"], "binary.txt is not a UTF-8 text file"),
        (["a cat", "a dog", "-o", "a.png"], "2 pictures do not fit in one file"),
        (["a cat", "--count", "3", "-o", "a.png"], "3 pictures do not fit in one file"),
        (["a cat", "-o", ""], "--out is empty"),
        (["a cat", "-o", "-"], "--out -: nothing but names and numbers goes to standard output"),
        (["a cat", "-o", ".png"], "--out .png has no name before its suffix: name a file such as picture.png"),
        (["a cat", "-o", "missing/.JPG"], "--out missing/.JPG has no name before its suffix"),
        (["a cat", "-o", "a.gif"], "cannot write .gif pictures"),
        (["a cat", "-o", "missing/a.png"], "there is no folder missing"),
        (["a cat", "-o", "a-file/a.png"], "there is no folder a-file"),
        (["a cat", "-o", "a-file"], "a-file exists and is not a folder"),
        (["a cat", "-o", "a-file/b/"], "a-file: it is not a folder"),
        (["a cat", "-o", "/proc/a.png"], "cannot write in /proc"),
        (["a cat", "-o", "/proc/pictures/"], "cannot write in /proc"),
        (["a cat", "-o", "x" * 300 + ".png"], "file name too long"),
        (["a cat", "-o", "a.png", "--strength", "0.5"], "--strength 0.5 is for a picture to start from"),
        (["a cat", "-o", "a.png", "--mask", "m.png"], "--mask m.png is for a picture to start from: name one with"),
        (["a cat", "-o", "a.png", "--image", "none.png"], "--image none.png: there is no such file"),
        (["a cat", "-o", "a.png", "--image", "a-file"], "--image a-file is not a picture that can be read"),
        (["a cat", "-o", "a.png", "--image", "white.png", "--strength", "1.5"], "--strength 1.5 is out of range"),
        (["a cat", "-o", "a.png", "--image", "white.png", "--strength", "nan"], "--strength nan is out of range"),
        (["a cat", "-o", "a.png", "--image", "white.png", "--mask", "none.png"], "--mask none.png: there is no such"),
    ],
)
def test_refused(arguments: list[str], fragment: str, workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = sorted(workplace.rglob("*"))
    assert run(["generate", *arguments]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("snapgen: error: ")
    assert err.count("\n") == 1
    assert fragment in err
    assert sorted(workplace.rglob("*")) == before


def test_prompts_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa cat\r\n\n  zwei rote Äpfel \n🍎\n".encode())
    assert read_prompts(path) == ["a cat", "zwei rote Äpfel", "🍎"]


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def test_one_picture_with_its_facts(tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "apples.png"
    assert run(["generate", "two red apples", "--out", str(path), "--model", str(tiny_model), "--seed", "7"]) == 0
    assert capfd.readouterr() == (f"{path}\n", "")
    with Image.open(path) as image:
        assert image.size == (32, 32)
        assert image.text == {  # type: ignore[attr-defined]
            "prompt": "two red apples",
            "seed": "7",
            "size": "32x32",
            "steps": "2",
            "guidance": "4.0",
            "model": str(tiny_model),
            "snapgen": snapgen.__version__,
        }


def test_settings_reach_the_pipeline(tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", "a cat", "--out", str(tmp_path / "a.jpg"), "--model", str(tiny_model), "--json"]
    assert run([*arguments, "--steps", "3", "--guidance", "1", "--size", "64x32"]) == 0
    facts = json.loads(capfd.readouterr().out)
    assert (facts["steps"], facts["guidance"]) == (3, 1.0)
    assert facts["pictures"] == [{"path": str(tmp_path / "a.jpg"), "prompt": "a cat", "seed": 0, "size": "64x32"}]
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.size == (64, 32)


def test_the_guidance_interval(tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two steps at sigma 1 and 0.75: guided at both, at the first alone, at none."""
    drawn = {}
    for interval in (None, "0,1", "0.8, 1", "0,0.5"):
        path = tmp_path / f"{interval}.png"
        options = [] if interval is None else ["--guidance-interval", interval]
        assert run(["generate", "a cat", "-o", str(path), "--model", str(tiny_model), "--json", *options]) == 0
        drawn[interval] = pixels(path)
        recorded = {None: None, "0,1": "0.0,1.0", "0.8, 1": "0.8,1.0", "0,0.5": "0.0,0.5"}[interval]
        assert json.loads(capfd.readouterr().out).get("guidance_interval") == recorded
        with Image.open(path) as image:
            assert image.text.get("guidance_interval") == recorded  # type: ignore[attr-defined]
    assert drawn[None] == drawn["0,1"]
    assert len(set(drawn.values())) == 3
    unguided = ["-o", str(tmp_path / "unguided.png"), "--model", str(tiny_model), "--guidance", "1"]
    assert run(["generate", "a cat", *unguided, "--guidance-interval", "0,0.5"]) == 0
    assert capfd.readouterr().err == (
        "snapgen: warning: --guidance-interval has no effect: guidance is 1, there is no guidance\n"
    )
    assert pixels(tmp_path / "unguided.png") == drawn["0,0.5"]


def test_some_of_the_text_encoders(
    tiny_model: Path, text_models: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from snapgen.pipeline.text_to_image import SnapGenPipeline
    from snapgen.text.load import load_text_encoders

    arguments = ["generate", "a cat", "--out", str(tmp_path / "a.png"), "--json"]
    assert run([*arguments, "--model", str(tiny_model), "--encoders", "text_encoder_2"]) == 1
    line = "text_encoders is ['text_encoder_2'], expected some of text_encoder (CLIPTextModel), the only one"
    assert capfd.readouterr().err == f"snapgen: error: {line} of this model\n"
    assert not (tmp_path / "a.png").exists()
    tiny = SnapGenPipeline.from_pretrained(tiny_model)
    several = SnapGenPipeline(tiny.unet, tiny.vae, **load_text_encoders(text_models, torch.float32))
    several.save_pretrained(tmp_path / "several")
    capfd.readouterr()
    arguments += ["--model", str(tmp_path / "several")]
    some = ["--encoders", "text_encoder,text_encoder_3"]
    assert run([*arguments, *some]) == 0
    assert json.loads(capfd.readouterr().out)["encoders"] == "text_encoder,text_encoder_3"
    drawn = pixels(tmp_path / "a.png")
    shutil.rmtree(tmp_path / "several" / "text_encoder_2")  # only those named are opened
    assert run([*arguments, *some]) == 0
    assert pixels(tmp_path / "a.png") == drawn
    assert run(arguments) == 1 and "text_encoder_2 is missing" in capfd.readouterr().err


def test_many_prompts_and_seeds(tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "more.txt").write_text("a dog\n")
    arguments = ["generate", "a cat", "", "--prompts", str(tmp_path / "more.txt"), "--model", str(tiny_model)]
    assert run([*arguments, "--count", "4", "--seed", "5", "--out", f"{tmp_path}/new/pictures/"]) == 0
    names = [
        f"{index:04d}-{slug}-{seed}.png"
        for index, slug in enumerate(["a-cat", "picture", "a-dog"])
        for seed in (5, 6, 7, 8)
    ]
    folder = tmp_path / "new" / "pictures"
    assert capfd.readouterr() == ("".join(f"{folder / name}\n" for name in names), "")
    assert sorted(path.name for path in folder.iterdir()) == names
    assert len({pixels(folder / name) for name in names}) == len(names)


def test_the_same_prompt_and_seed_draw_the_same_picture_in_any_batch(tiny_model: Path, tmp_path: Path) -> None:
    alone, among = tmp_path / "alone.png", tmp_path / "among"
    assert run(["generate", "a dog", "--seed", "6", "--out", str(alone), "--model", str(tiny_model)]) == 0
    many = ["a cat", "two red apples", "a dog"]
    assert run(["generate", *many, "--seed", "5", "--count", "3", "--out", str(among), "--model", str(tiny_model)]) == 0
    assert pixels(among / "0002-a-dog-6.png") == pixels(alone)


def test_a_long_prompt_is_cut_with_a_warning(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["generate", "red " * 2500, "--out", str(tmp_path / "a.png"), "--model", str(tiny_model)]) == 0
    err = capfd.readouterr().err
    assert err.startswith("snapgen: warning: ")
    assert err.count("\n") == 1
    assert "the first 16" in err


def remove_weights(model: Path) -> str:
    (model / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    return "unet"


def truncate_weights(model: Path) -> str:
    path = model / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return "unet"


def truncate_text_encoder(model: Path) -> str:
    path = model / "text_encoder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    return "text_encoder"


def remove_text_encoder_weights(model: Path) -> str:
    (model / "text_encoder" / "model.safetensors").unlink()
    return "text_encoder"


def reshape_weights(model: Path) -> str:
    path = model / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    save_file(tensors | {name: torch.zeros(3, 1, 4)}, path)
    return "vae"


def reshape_text_encoder(model: Path) -> str:
    path = model / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "q_proj.weight" in name)
    save_file(tensors | {name: torch.zeros(3, 1, 4)}, path, metadata={"format": "pt"})
    return "text_encoder"


def drop_a_tensor(model: Path) -> str:
    path = model / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, path)
    return "unet"


def drop_a_text_tensor(model: Path) -> str:
    path = model / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    tensors.pop(next(name for name in tensors if "q_proj.weight" in name))
    save_file(tensors, path, metadata={"format": "pt"})
    return "text_encoder"


def break_component_config(model: Path) -> str:
    (model / "unet" / "config.json").write_text("{ this is no JSON")
    return "unet"


def remove_component(model: Path) -> str:
    shutil.rmtree(model / "vae")
    return "vae"


def break_index(model: Path) -> str:
    (model / "model_index.json").write_text("{")
    return "model_index.json"


def foreign_index(model: Path) -> str:
    (model / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return "model_index.json"


def incomplete_index(model: Path) -> str:
    path = model / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"unet": [None, None]}))
    return "model_index.json"


def unknown_library(model: Path) -> str:
    path = model / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"unet": ["os", "system"]}))
    return "model_index.json: unet"


def empty_index(model: Path) -> str:
    (model / "model_index.json").write_text("{}")
    return "model_index.json"


def remove_tokenizer(model: Path) -> str:
    (model / "tokenizer" / "tokenizer.json").unlink()
    return "tokenizer"


def break_tokenizer(model: Path) -> str:
    (model / "tokenizer" / "tokenizer.json").write_text("{")
    return "tokenizer"


@pytest.mark.parametrize(
    "damage",
    [
        remove_weights,
        truncate_weights,
        reshape_weights,
        drop_a_tensor,
        truncate_text_encoder,
        remove_text_encoder_weights,
        reshape_text_encoder,
        drop_a_text_tensor,
        break_component_config,
        remove_component,
        break_index,
        empty_index,
        foreign_index,
        incomplete_index,
        unknown_library,
        remove_tokenizer,
        break_tokenizer,
    ],
)
def test_a_damaged_model_is_one_line_naming_the_place(
    damage: Callable[[Path], str], tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "damaged"
    shutil.copytree(tiny_model, model)
    place = damage(model)
    assert run(["generate", "a cat", "--out", str(tmp_path / "a.png"), "--model", str(model)]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("snapgen: error: ")
    assert err.count("\n") == 1
    assert str(model / place) in err
    assert not (tmp_path / "a.png").exists()


def test_a_picture_that_is_not_finite_is_no_result(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Weights that are finite and below the limit of loading can still overflow in the second step."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    path = model / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if name.startswith(("conv_in", "conv_out")) and name.endswith("weight")]:
        tensors[name] = torch.full_like(tensors[name], 1e15)
    save_file(tensors, path)
    options = ["--model", str(model), "--steps", "2", "--seed", "7"]
    assert run(["generate", "a cat", "-o", str(tmp_path / "a.png"), *options]) == 1
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("snapgen: error: the picture of 'a cat' with seed 7 is not finite")
    assert not (tmp_path / "a.png").exists()


def test_an_unknown_hub_name_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", "a cat", "--out", str(tmp_path / "a.png"), "--model", "nobody/nothing"]) == 1
    err = capfd.readouterr().err
    assert err.startswith("snapgen: error: 'nobody/nothing' is not a folder here, and the hub does not provide it")
    assert err.count("\n") == 1


def test_adapters_change_the_picture(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft.utils import get_peft_model_state_dict

    from snapgen.pipeline.text_to_image import SnapGenPipeline
    from snapgen.train.stages.flow import LoraSettings, add_adapters

    torch.manual_seed(0)
    pipeline = SnapGenPipeline.from_pretrained(tiny_model)
    add_adapters(pipeline.unet, LoraSettings(rank=2))
    for name, parameter in pipeline.unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    adapters = tmp_path / "adapters"
    SnapGenPipeline.save_lora_weights(adapters, unet_lora_layers=get_peft_model_state_dict(pipeline.unet))
    monkeypatch.setattr("snapgen.pipeline.components.gains_by_bfloat16", lambda device: True)
    drawn = []
    capsys.readouterr()
    for index, options in enumerate(([], ["--lora", str(adapters)], ["--optimize"])):
        out = tmp_path / f"{index}.png"
        assert run(["generate", "a cat", "-o", str(out), "--model", str(tiny_model), "--steps", "2", *options]) == 0
        drawn.append(out.read_bytes())
    assert capsys.readouterr().err == ""
    assert len(set(drawn)) == 3

    (adapters / "pytorch_lora_weights.safetensors").write_bytes(b"nothing")
    for folder, message in ((adapters, "does not fit the model"), (tmp_path, "expected a folder with pytorch_lora")):
        assert run(["generate", "a cat", "-o", str(tmp_path / "x.png"), "--lora", str(folder)]) != 0
        error = capsys.readouterr().err
        assert error.startswith("snapgen: error: --lora") and message in error and error.count("\n") == 1
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("options", [[], ["--json"]])
@pytest.mark.parametrize(("kind", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_stopped_names_what_it_has_written(
    kind: signal.Signals,
    status: int,
    options: list[str],
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The signal comes in the second batch; it leaves no half-written file."""
    batches, generate = [], TorchEngine.generate

    def in_the_second(*arguments: Any) -> Any:
        batches.append(None)
        if len(batches) == 2:
            signal.raise_signal(kind)
        return generate(*arguments)

    monkeypatch.setattr(TorchEngine, "generate", in_the_second)
    command = ["generate", "a cat", "-o", f"{tmp_path}/", "--count", "9", "--model", str(tiny_model), "--steps", "1"]
    assert run([*command, *options]) == status
    out, err = capfd.readouterr()
    written = sorted(str(path) for path in tmp_path.iterdir())
    assert len(written) == BATCH
    assert sorted(p["path"] for p in json.loads(out)["pictures"]) == written if options else out.split() == written
    message = {130: "interrupted", 143: "stopped by SIGTERM, exit status 143"}[status]
    assert err == f"snapgen: error: {message}\n"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_progress_without_a_terminal(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("snapgen.messages.QUIET_SECONDS", 0.0)
    assert run(["generate", "a cat", "-o", f"{tmp_path}/a.png", "--model", str(tiny_model), "--steps", "2"]) == 0
    first, second = capfd.readouterr().err.splitlines()
    assert first.startswith("generating 1/2 steps  ") and second.startswith("generating 2/2 steps  ")
    assert second.endswith("/s  0:00:00 left")


def test_words_that_the_model_has_not_learned(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line for all prompts; a model without a list says nothing."""
    from snapgen.pipeline.text_to_image import SnapGenPipeline

    model = tmp_path / "model"
    pipeline = SnapGenPipeline.from_pretrained(tiny_model)
    pipeline.register_to_config(known_words={"nouns": ["cat", "hat"], "other": ["a"]})
    pipeline.save_pretrained(model)
    capfd.readouterr()
    many = " ".join(f"w{chr(97 + index)}" for index in range(12)) + " " + "x" * 99
    for where, prompts, line in (
        (model, ["A cat!", "a hat"], ""),
        (model, ["a penguin, wearing a hat", "penguin"], "has not learned: penguin, wearing; 'snapgen data words "),
        (model, [many], "has not learned: wa, wb, wc, wd, we, wf, wg, wh, wi, wj and 3 more; 'snapgen data words "),
        (model, ["x" * 99], f"has not learned: {'x' * 30}; 'snapgen data words "),
        (tiny_model, ["a penguin"], ""),
    ):
        assert run(["generate", *prompts, "-o", f"{tmp_path}/", "--model", str(where), "--steps", "1"]) == 0
        lines = [
            found for found in capfd.readouterr().err.splitlines() if "the text encoder reads the first" not in found
        ]
        assert lines == ([f"snapgen: warning: {model} {line}{model}' lists what it knows"] if line else [])


def test_a_picture_to_start_from(tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """At strength 1 it is text to image; with a mask, the black part stays."""
    from snapgen.pipeline.image_to_image import SnapGenImg2ImgPipeline

    image = tmp_path / "start.png"
    Image.effect_noise((40, 50), 90).convert("RGB").save(image)
    options = ["--model", str(tiny_model), "--steps", "4", "--seed", "5"]
    plain, full, half, masked = (tmp_path / f"{name}.png" for name in ("plain", "full", "half", "masked"))
    assert run(["generate", "a cat", "-o", str(plain), *options]) == 0
    assert run(["generate", "a cat", "-o", str(full), *options, "--image", str(image), "--strength", "1"]) == 0
    assert capfd.readouterr() == (f"{plain}\n{full}\n", "")
    assert pixels(full) == pixels(plain)

    assert run(["generate", "a cat", "-o", str(half), *options, "--image", str(image), "--strength", "0.5"]) == 0
    pipeline = SnapGenImg2ImgPipeline.from_pretrained(tiny_model)
    expected = pipeline(
        "a cat",
        image=Image.open(image),
        strength=0.5,
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(5),
    ).images[0]
    assert pixels(half) == expected.tobytes()
    with Image.open(half) as written:
        assert {"image": "start.png", "strength": "0.5"}.items() <= written.text.items()  # type: ignore[attr-defined]

    mask = tmp_path / "mask.png"
    Image.new("L", (32, 32), 0).save(mask)
    options += ["--image", str(image), "--mask", str(mask)]
    assert run(["generate", "a cat", "-o", str(masked), *options]) == 0
    nothing = pixels(masked)
    assert run(["generate", "a dog", "-o", str(masked), *options, "--strength", "0.9"]) == 0
    assert pixels(masked) == nothing  # all black: nothing of the picture changes
    capfd.readouterr()

    assert run(["generate", "a cat", "-o", str(half), *options, "--strength", "0"]) == 1
    assert "strength 0.0 leaves none of 4 steps" in capfd.readouterr().err
