"""What recipes name: folders of earlier stages, the bundled models, hub names."""

from __future__ import annotations

from pathlib import Path

from snapgen.config import RecipeError
from snapgen.pipeline.bundled import BUNDLED, bundled_folder


def locate(key: str, folder: Path, part: str = "") -> Path:
    """The folder that a recipe names, or `part` of the bundled "mini-base"; RecipeError if it does not exist.

    "mini" has the same autoencoder and text encoder. Its UNet knows the levels of few-step schedules only.
    """
    if str(folder) in BUNDLED and not folder.exists():
        if key in ("initial", "teacher") and str(folder) != "mini-base":
            raise RecipeError(f"{key}: '{folder}' draws in few steps and neither goes on nor teaches; name 'mini-base'")
        return bundled_folder() / part
    if not folder.is_dir():
        raise RecipeError(f"{key}: folder {folder} does not exist; train that stage first, or name another")
    return folder


def is_hub_name(name: str) -> bool:
    """Whether `name` can only be one on the hub: owner/name, and no folder here."""
    path = Path(name)
    return len(path.parts) == 2 and not path.is_absolute() and not path.exists()


def folder_or_hub_name(key: str, name: str) -> str:
    """`name` if it is one on the hub, otherwise the folder of `locate`."""
    return name if is_hub_name(name) else str(locate(key, Path(name)))


def text_sources(text: str | tuple[str, ...]) -> list[str]:
    """What the setting `text` names: folders that exist, or hub names."""
    names = [text] if isinstance(text, str) else text
    return [folder_or_hub_name("text", name) for name in names]
