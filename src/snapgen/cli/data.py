"""`snapgen data`: preview the pictures and captions that training sees, list their words, and pack your own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from snapgen.cli.options import parse_nouns
from snapgen.cli.outputs import check_file, check_folder
from snapgen.cli.progress import show_items
from snapgen.pipeline.bundled import BUNDLED

app = typer.Typer(help="Look at training data, pack your own.", no_args_is_help=True)


@app.callback()
def data() -> None:
    """Look at training data, pack your own."""


@app.command()
def preview(
    out: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("preview.png"),
    count: Annotated[int, typer.Option(min=1, help="Number of pictures.")] = 48,
    split: Annotated[str, typer.Option(help="train, heldout or all.")] = "train",
    size: Annotated[int, typer.Option(min=32, help="Side of a picture, px.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the scenes.")] = 0,
    nouns: Annotated[
        str | None, typer.Option(metavar="A,B", help="Only these things, or 'everything' for the whole vocabulary.")
    ] = None,
) -> None:
    """Write a contact sheet of captioned scenes."""
    from snapgen.pictures import contact_sheet, save_png
    from snapgen.world.source import SceneSettings, SceneSource

    if split not in ("train", "heldout", "all"):
        raise ValueError(f"--split {split}: expected train, heldout or all")
    check_file("--out", out, (".png",))
    settings = SceneSettings(resolution=size, count=count, seed=seed, split=split, nouns=parse_nouns(nouns))  # type: ignore[arg-type]
    source = SceneSource(settings)
    images = [source.image(i) for i in show_items(range(count), "rendering", count)]
    save_png(contact_sheet(images, [source.caption(i, 0) for i in range(count)], columns=8), out)
    typer.echo(out)


@app.command()
def words(
    model: Annotated[
        str, typer.Argument(metavar="[MODEL]", help="'mini', 'mini-base', a model folder, or a hub name.")
    ] = next(iter(BUNDLED)),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of lines.")] = False,
) -> None:
    """Print the words that MODEL has learned, by kind, if it was trained on the built-in world alone."""
    from snapgen.pipeline.words import words_of_model

    learned = words_of_model(model)
    if learned is None:
        raise ValueError(f"{model} has no list of words: only models trained on the built-in world have one")
    if as_json:
        typer.echo(json.dumps({"model": model, "words": learned}, ensure_ascii=False))
        return
    for kind, found in learned.items():
        typer.echo(f"{kind}: {', '.join(found)}")


@app.command()
def pack(
    folder: Annotated[Path, typer.Argument(help="Folder of pictures with captions, as the source 'folder' reads it.")],
    out: Annotated[Path, typer.Argument(help="New folder for the tars.")],
    per_shard: Annotated[int, typer.Option(min=1, help="Pictures per tar.")] = 10_000,
    template: Annotated[
        str | None, typer.Option(help="Caption of a class, with '{}' for its name; by default captions are files.")
    ] = None,
    class_names: Annotated[
        Path | None, typer.Option(help="File that names the class folders, with lines like 'n01440764 tench'.")
    ] = None,
) -> None:
    """Pack a folder of pictures, unchanged, into tars for the source 'shards'; prints the tars' names."""
    from snapgen.data.folder import FolderSettings, FolderSource
    from snapgen.data.shards import write_shards

    check_folder("OUT", out)
    if out.exists():
        raise ValueError(f"{out} exists already: name a new folder")
    settings = FolderSettings(source="folder", path=folder, resolution=32, template=template, class_names=class_names)
    for tar in write_shards(FolderSource(settings), out, per_shard, show_items):
        typer.echo(tar)
