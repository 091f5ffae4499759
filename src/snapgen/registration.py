"""Makes the pipelines known to diffusers, so that its own loaders find them after `import snapgen`.

A model folder names its pipeline, for example `SnapGenPipeline`. `DiffusionPipeline.from_pretrained` looks the name up
in the module `diffusers`, the classes `AutoPipelineFor...` in public mappings, and both need the modules of its parts
to be imported. diffusers has no function to register a pipeline, so the names are added here: to what is imported
already at once, to the rest as soon as the user imports it. Nothing heavy is imported before that.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from snapgen.registry import load_attribute

PIPELINES = {
    "SnapGenPipeline": "snapgen.pipeline.text_to_image:SnapGenPipeline",
    "SnapGenImg2ImgPipeline": "snapgen.pipeline.image_to_image:SnapGenImg2ImgPipeline",
    "SnapGenInpaintPipeline": "snapgen.pipeline.inpainting:SnapGenInpaintPipeline",
}
TASKS = {
    "AUTO_TEXT2IMAGE_PIPELINES_MAPPING": "SnapGenPipeline",
    "AUTO_IMAGE2IMAGE_PIPELINES_MAPPING": "SnapGenImg2ImgPipeline",
    "AUTO_INPAINT_PIPELINES_MAPPING": "SnapGenInpaintPipeline",
}


def add_names(diffusers: ModuleType) -> None:
    """Let the module `diffusers` import the pipelines when it is asked for them (a module's `__getattr__`, PEP 562)."""
    before: Callable[[str], Any] | None = vars(diffusers).get("__getattr__")

    def find(name: str) -> Any:
        if name in PIPELINES:
            return load_attribute(PIPELINES[name])
        if before is not None:
            return before(name)
        raise AttributeError(f"module 'diffusers' has no attribute '{name}'")

    vars(diffusers)["__getattr__"] = find


def add_tasks(auto_pipeline: ModuleType) -> None:
    """Add the pipelines to the mappings from a model's name to its pipeline for a task."""
    for mapping, name in TASKS.items():
        getattr(auto_pipeline, mapping)["snapgen"] = load_attribute(PIPELINES[name])


ACTIONS: dict[str, Callable[[ModuleType], None]] = {
    "diffusers": add_names,
    "diffusers.pipelines.auto_pipeline": add_tasks,
}


class ActingFinder(MetaPathFinder):
    """Finds the modules of `ACTIONS` as Python does, and acts on each after it was imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The specification of a module of `ACTIONS`; None for all others."""
        spec = PathFinder.find_spec(fullname, path, target) if fullname in ACTIONS else None
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_act(module: ModuleType) -> None:
                execute(module)
                ACTIONS[fullname](sys.modules[fullname])  # diffusers replaces itself there by a lazy module

            vars(spec.loader)["exec_module"] = execute_and_act
        return spec


def register() -> None:
    """Act on the modules of `ACTIONS` that are imported, and on the others when they are."""
    for name, act in ACTIONS.items():
        if name in sys.modules:
            act(sys.modules[name])
    sys.meta_path.insert(0, ActingFinder())
