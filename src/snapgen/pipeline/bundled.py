"""The names and folders of the models that ship in the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

# Folders in bundled/, by name. The first is the default; it holds only its UNet and shares the rest of the second.
BUNDLED = {"mini": "few_steps", "mini-base": "."}


def bundled_folder() -> Path:
    """The folder of the bundled weights, which is the pipeline folder of `mini-base`."""
    folder = Path(str(files("snapgen") / "bundled"))
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"the package has no bundled weights in {folder}; name a model folder instead")
    return folder
