"""diffusers' own loaders find the pipelines after `import snapgen`, in whatever order, without trusting remote code."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    DiffusionPipeline,
)

from snapgen.registration import PIPELINES, ActingFinder, add_names

AUTO = "from diffusers import AutoPipelineForText2Image as loader"
PLAIN = "from diffusers import DiffusionPipeline as loader"


@pytest.mark.parametrize(
    ("loader", "name"),
    [
        (DiffusionPipeline, "SnapGenPipeline"),
        (AutoPipelineForText2Image, "SnapGenPipeline"),
        (AutoPipelineForImage2Image, "SnapGenImg2ImgPipeline"),
        (AutoPipelineForInpainting, "SnapGenInpaintPipeline"),
    ],
)
def test_folders_are_loaded_by_their_pipelines_name(tiny_model: Path, loader: type, name: str) -> None:
    assert type(loader.from_pretrained(tiny_model)).__name__ == name


@pytest.mark.slow
@pytest.mark.parametrize("loader", [PLAIN, AUTO])
@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_in_either_order(tiny_model: Path, loader: str, order: slice) -> None:
    imports = ["import snapgen", loader][order]
    code = "; ".join([*imports, "import sys", "print(type(loader.from_pretrained(sys.argv[1])).__name__)"])
    done = subprocess.run([sys.executable, "-c", code, tiny_model], capture_output=True, text=True, timeout=120)
    assert done.stdout == "SnapGenPipeline\n", done.stderr


def test_other_names_are_found_as_before() -> None:
    module = ModuleType("diffusers")
    module.__getattr__ = {"LCMScheduler": 1}.__getitem__  # type: ignore[method-assign]
    add_names(module)
    assert module.LCMScheduler == 1 and module.SnapGenPipeline.__name__ == "SnapGenPipeline"
    empty = ModuleType("diffusers")
    add_names(empty)
    assert set(PIPELINES) == {name for name in (*PIPELINES, "LCMScheduler") if hasattr(empty, name)}


def test_other_modules_are_none_of_its_business() -> None:
    assert ActingFinder().find_spec("json", None) is None
    assert ActingFinder().find_spec("diffusers", ["no such place"]) is None
