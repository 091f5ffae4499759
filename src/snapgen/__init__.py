"""SnapGen in the open: small text-to-image models for mobile devices, trained, distilled and run.

The public names below are imported on first use, so that `import snapgen` stays free of torch. It also makes the
pipelines known to diffusers (`snapgen.registration`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from snapgen.registration import PIPELINES, register
from snapgen.registry import load_attribute

if TYPE_CHECKING:
    from snapgen.models.autoencoder import SnapGenAutoencoder
    from snapgen.models.unet import SnapGenUNet
    from snapgen.pipeline.image_to_image import SnapGenImg2ImgPipeline
    from snapgen.pipeline.inpainting import SnapGenInpaintPipeline
    from snapgen.pipeline.text_to_image import SnapGenPipeline

    __version__: str

__all__ = [
    "SnapGenAutoencoder",
    "SnapGenImg2ImgPipeline",
    "SnapGenInpaintPipeline",
    "SnapGenPipeline",
    "SnapGenUNet",
    "__version__",
]

_HOMES = {
    "SnapGenAutoencoder": "snapgen.models.autoencoder:SnapGenAutoencoder",
    "SnapGenUNet": "snapgen.models.unet:SnapGenUNet",
    **PIPELINES,
}


def __getattr__(name: str) -> object:
    """The public class `name`, imported from its home, or the installed version."""
    if name == "__version__":
        from importlib.metadata import version

        return version("snapgen")
    if name in _HOMES:
        return load_attribute(_HOMES[name])
    raise AttributeError(f"module 'snapgen' has no attribute '{name}'")


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted(__all__)


register()
