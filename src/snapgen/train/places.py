"""Finds the models that recipes name: folders of earlier stages, the bundled models, or hub names."""

from __future__ import annotations

from pathlib import Path

from snapgen.config import RecipeError
from snapgen.pipeline.bundled import BUNDLED, bundled_folder


def locate(key: str, folder: Path, part: str = "") -> Path:
    """The folder that a recipe names, or `part` of the bundled "mini-base"; RecipeError if it does not exist.

    "mini" has the same autoencoder and text encoder, but its UNet knows only the noise levels of few-step schedules.
    """
    if str(folder) in BUNDLED and not folder.exists():
        if key in ("initial", "teacher") and str(folder) != "mini-base":
            raise RecipeError(
                f"{key}: '{folder}' is a few-step model and can neither be continued nor teach; name 'mini-base'"
            )
        return bundled_folder() / part
    if not folder.is_dir():
        raise RecipeError(f"{key}: folder {folder} does not exist; train that stage first, or name another")
    return folder


def is_hub_name(name: str) -> bool:
    """Whether `name` can only be a hub name: owner/name, and no such folder here."""
    path = Path(name)
    return len(path.parts) == 2 and not path.is_absolute() and not path.exists()


def folder_or_hub_name(key: str, name: str) -> str:
    """`name` if it is a hub name, otherwise the folder that `locate` finds."""
    return name if is_hub_name(name) else str(locate(key, Path(name)))


def text_sources(text: str | tuple[str, ...]) -> list[str]:
    """The sources that the setting `text` names: folders that exist, or hub names."""
    names = [text] if isinstance(text, str) else text
    return [folder_or_hub_name("text", name) for name in names]
