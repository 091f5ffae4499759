"""The models in the package: what they are called and where they are."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

# Folders below bundled/, by name; the first is the default. The second is complete, the first has only its own UNet.
BUNDLED = {"mini": "few_steps", "mini-base": "."}


def bundled_folder() -> Path:
    """Where the package keeps the miniature's weights: a pipeline folder, that of `mini-base`."""
    folder = Path(str(files("snapgen") / "bundled"))
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"the package has no bundled weights in {folder}; name a model folder instead")
    return folder
