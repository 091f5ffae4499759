"""`--image`, `--strength` and `--mask` of `snapgen generate`: a picture to start from, checked before any work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snapgen.cli.options import check_range
from snapgen.messages import one_line
from snapgen.pipeline.inputs import STRENGTH, check_strength, skipped_steps

if TYPE_CHECKING:
    from PIL.Image import Image

    from snapgen.pipeline.text_to_image import SnapGenPipeline


@dataclass(frozen=True)
class StartPicture:
    """A picture to start from, how much of it may change, and where."""

    image: Image
    strength: float
    mask: Image | None
    facts: dict[str, str | float]  # for the files that are written

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of the pipeline's call."""
        settings: dict[str, Any] = {"image": self.image, "strength": self.strength}
        return settings if self.mask is None else settings | {"mask_image": self.mask}

    def steps_of(self, steps: int) -> int:
        """How many of `steps` are taken; ValueError if none is."""
        check_strength(self.strength, steps)
        return steps - skipped_steps(steps, self.strength)

    def pipeline_of(self, pipeline: SnapGenPipeline) -> SnapGenPipeline:
        """The sibling of `pipeline`, with its components, that starts from a picture."""
        from snapgen.pipeline.image_to_image import SnapGenImg2ImgPipeline
        from snapgen.pipeline.inpainting import SnapGenInpaintPipeline

        kind = SnapGenImg2ImgPipeline if self.mask is None else SnapGenInpaintPipeline
        sibling = kind(**pipeline.components, **pipeline.settings)
        sibling.set_progress_bar_config(disable=True)
        return sibling


def read_start(image: Path | None, strength: float | None, mask: Path | None) -> StartPicture | None:
    """The picture to start from; None without `--image`. ValueError for files and numbers that cannot be used."""
    if image is None:
        for option, value in (("--strength", strength), ("--mask", mask)):
            if value is not None:
                raise ValueError(f"{option} {value} is for a picture to start from: name one with --image")
        return None
    check_range("--strength", strength, 0, 1)
    facts: dict[str, str | float] = {"image": image.name, "strength": STRENGTH if strength is None else strength}
    if mask is not None:
        facts["mask"] = mask.name
    mask_image = None if mask is None else read_picture("--mask", mask)
    return StartPicture(read_picture("--image", image), float(facts["strength"]), mask_image, facts)


def read_picture(option: str, file: Path) -> Image:
    """The picture in `file`, which `option` names: RGB, upright, on white."""
    from snapgen.pictures import read_rgb

    if not file.is_file():
        raise ValueError(f"{option} {file}: there is no such file")
    try:
        return read_rgb(file)
    except ValueError as error:
        raise ValueError(f"{option} {file} is not a picture that can be read: {one_line(error)}") from error
