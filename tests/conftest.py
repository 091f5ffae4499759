"""What all tests share: no network, one thread, and one tiny model folder."""

import importlib.util
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny, and threads that wait for a busy core are slow

# Shells start background work with Ctrl-C ignored, and some tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parents[1]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With several processes, files with slow tests come first, so that none of them is left for the end."""
    if config.getoption("numprocesses", None) or hasattr(config, "workerinput"):
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def script() -> Callable[[str], ModuleType]:
    """Imports a script of scripts/ by its name."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole pipeline of the `debug` presets, 32 x 32 pixels, with random weights."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    from snapgen.models.presets import UNETS, create_autoencoder, create_unet
    from snapgen.pipeline.text_to_image import SnapGenPipeline
    from snapgen.text.tokenizer import train_tokenizer

    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a cat", "two red apples", "a dog on a blue background"], 100, max_length=16)
    width = UNETS["debug"]["cross_attention_dim"]
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    pipeline = SnapGenPipeline(
        unet=create_unet("debug"),
        vae=create_autoencoder("debug"),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        default_num_inference_steps=2,
    )
    folder = tmp_path_factory.mktemp("tiny") / "model"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_model` as an ONNX bundle with fp32 weights, made once for all processes of the tests."""
    from filelock import FileLock

    from snapgen.export.model import ExportSettings, export_model

    parallel = "PYTEST_XDIST_WORKER" in os.environ
    folder = (tmp_path_factory.getbasetemp().parent if parallel else tmp_path_factory.mktemp("tiny")) / "bundle"
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            export_model(str(tiny_model), folder, ExportSettings("onnx", "fp32"), lambda message: None)
    return folder


@pytest.fixture(scope="session")
def text_models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Folders as on the hub of a whole CLIP, a CLIP text model with projection and a Gemma: 8 and 12, and 32 wide."""
    import torch
    from transformers import (
        CLIPConfig,
        CLIPModel,
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        Gemma2Config,
        Gemma2ForCausalLM,
    )

    from snapgen.text.tokenizer import train_tokenizer

    torch.manual_seed(1)
    tokenizer = train_tokenizer(["a cat", "two red apples", "a dog on a blue background"], 120, max_length=16)
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    sizes = {"intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2} | special
    sizes["vocab_size"] = len(tokenizer)
    texts = [
        CLIPTextConfig(hidden_size=width, projection_dim=width, max_position_embeddings=16, **sizes)
        for width in (8, 12)
    ]
    vision = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "image_size": 8, "patch_size": 4}
    models = {
        "clip": CLIPModel(CLIPConfig(text_config=texts[0].to_dict(), vision_config=vision, projection_dim=8)),
        "clip-projected": CLIPTextModelWithProjection(texts[1]),
        "gemma": Gemma2ForCausalLM(Gemma2Config(hidden_size=32, num_key_value_heads=1, head_dim=8, **sizes)),
    }
    folders = []
    for name, model in models.items():
        folder = tmp_path_factory.mktemp("text") / name
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        folders.append(str(folder))
    return folders


@pytest.fixture(scope="session")
def benchmark() -> Callable[[str], ModuleType]:
    """Imports a script of benchmarks/ by its name."""
    return import_module


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """The system's Chromium without a window, driven by playwright; the tests fail without one."""
    from playwright.sync_api import sync_playwright

    names = ("chromium-headless-shell", "chromium", "google-chrome")
    found = [path for name in names if (path := shutil.which(name))]
    if not found:
        pytest.fail("no browser found; install one: scripts/install_browser.sh", pytrace=False)
    with sync_playwright() as playwright:
        # By another name, pages on this machine lack what browsers grant to localhost and HTTPS.
        names_of_this_machine = "--host-resolver-rules=MAP elsewhere.test 127.0.0.1"
        browser = playwright.chromium.launch(executable_path=found[0], args=[names_of_this_machine])
        yield browser
        browser.close()
