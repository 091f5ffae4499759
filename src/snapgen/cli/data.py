"""snapgen data: look at the pictures and captions that training sees."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Look at training data.", no_args_is_help=True)


@app.callback()
def data() -> None:
    """Look at training data."""


@app.command()
def preview(
    out: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("preview.png"),
    count: Annotated[int, typer.Option(min=1, help="Number of pictures.")] = 48,
    split: Annotated[str, typer.Option(help="train, heldout or all.")] = "train",
    size: Annotated[int, typer.Option(min=32, help="Side of a picture, px.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the scenes.")] = 0,
) -> None:
    """Write a contact sheet of captioned scenes."""
    from snapgen.data.preview import contact_sheet, save_png
    from snapgen.data.scenes import SceneSettings, SceneSource

    if split not in ("train", "heldout", "all"):
        raise ValueError(f"--split {split}: expected train, heldout or all")
    source = SceneSource(SceneSettings(resolution=size, count=count, seed=seed, split=split))  # type: ignore[arg-type]
    images = [source.image(i) for i in range(count)]
    save_png(contact_sheet(images, [source.caption(i, 0) for i in range(count)], columns=8), out)
    typer.echo(out)
