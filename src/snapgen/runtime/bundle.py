"""The description of a bundle, `bundle.json`: what its files are, how to call them, and how exact they are.

A bundle is a folder that needs nothing else: networks in the format of one runtime, tokenizers as the library
`tokenizers` reads them, and this file. It comes from anywhere, so everything in it is checked before use.

The networks are functions of plain tensors, `B C h w` latents, `B N D` text states, whose names and shapes each
`Network` lists:

- `text_encoder`, `text_encoder_2`, `text_encoder_3`: token ids and their mask, B N', to text states of unit RMS per
  token, zeros where masked. The empty prompt is never encoded: its states are zeros, and only its first token is seen.
- `unet`: noisy latents, 1000 sigma, text states and their mask to the velocity.
- `decoder`: latents as diffusion has them to pictures B 3 H W, in about [-1, 1].
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, ValidationError

from snapgen.config import Settings
from snapgen.files import read_json, sha256, write_text
from snapgen.messages import first_mistake

BUNDLE = "bundle.json"
FORMAT: Final = "snapgen-bundle"
VERSION = 1  # of the format; it rises when a reader of the former one would go wrong
LARGEST_SIDE = 2**14  # of text states, as models have them: a hostile file must not fill the memory
LIMIT = 4 * 2**20  # bytes of the description
MOST_FILES = 1000
UNET, DECODER = "unet", "decoder"

Count = Annotated[int, Field(gt=0, lt=2**31)]
TokenCount = Annotated[int, Field(ge=0, le=LARGEST_SIDE)]
NetworkName = Annotated[str, Field(pattern="^(text_encoder(_[23])?|unet|decoder)$")]
FilePath = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*){0,5}$", max_length=200)]


def _check_span(span: list[int]) -> list[int]:
    if not (len(span) == 2 and 0 <= span[0] < span[1] <= LARGEST_SIDE):
        raise ValueError(f"{span} is not first and end of up to {LARGEST_SIDE} numbers")
    return span


Span = Annotated[list[int], AfterValidator(_check_span)]  # first, and one past the last


class Port(Settings):
    """An input or output of a network."""

    name: Annotated[str, Field(max_length=100)]
    dtype: Literal["float32", "float16", "int64", "int32", "bool"]
    shape: list[Count | str]  # a name stands for any size, the same wherever it stands


class Network(Settings):
    """A network of the bundle."""

    file: FilePath  # or a folder, such as Core ML's packages
    inputs: list[Port]
    outputs: list[Port]


class Text(Settings):
    """How prompts become the input of one text encoder, and where its states stand among all (`snapgen.text.join`)."""

    network: Literal["text_encoder", "text_encoder_2", "text_encoder_3"]
    tokenizer: FilePath | None  # None: the encoder is absent, and reads the empty prompt
    prefix: str = ""  # put before every prompt
    prefix_start: TokenCount = 0  # the prefix's tokens are these, and their states are omitted
    prefix_length: TokenCount = 0
    pad_token: int = Field(default=0, ge=0, lt=2**31)
    tokens: Span  # their number is the most that the encoder reads
    columns: Span
    pooled: bool  # a CLIP, which also gives a pooled vector, in the same columns of the joined one


class Latents(Settings):
    """What the UNet takes: sides in latent positions."""

    channels: Count
    height: Count  # by default, or, if they are fixed, always
    width: Count
    multiple: Count  # that sides must be of
    fixed: bool
    pixels: Count  # per latent position, along each side


class Sampling(Settings):
    """The model's own settings of sampling."""

    steps: int = Field(gt=0, le=1000)
    guidance: float = Field(ge=0)
    shift: float = Field(gt=0)


class Golden(Settings):
    """Noise to test an implementation of `snapgen.flow.noise` with: the first numbers of a seed."""

    seed: int = Field(ge=0)
    noise: list[float]


class Parity(Settings):
    """How near the bundle is to the model in torch, measured when it was made."""

    inputs: Count  # of each network: the texts of as many prompts, at noise levels from 1 to 0
    relative_error: dict[str, float]  # of each network's output, the largest of all inputs: |x - y| / |y|
    psnr: list[float]  # dB, of whole pictures from the same noise; none without text encoders


class File(Settings):
    """A file's size and content."""

    bytes: int = Field(ge=0)
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Bundle(Settings):
    """The content of `bundle.json`."""

    format: Literal["snapgen-bundle"] = FORMAT
    version: Literal[1] = 1
    target: Annotated[str, Field(max_length=100)]  # the runtime
    precision: Annotated[str, Field(max_length=100)]
    model: Annotated[str, Field(max_length=1000)]  # what was exported
    snapgen: Annotated[str, Field(max_length=100)]  # the version that did it
    license: Annotated[str, Field(max_length=1000)] | None  # of the weights, if the model names one
    networks: dict[NetworkName, Network]
    texts: Annotated[list[Text], Field(max_length=3)]
    latents: Latents
    sampling: Sampling
    known_words: dict[str, list[str]] | None  # the only words that the model has learned, by kind
    golden: Golden
    parity: Parity
    files: Annotated[dict[FilePath, File], Field(max_length=MOST_FILES)]  # all others of the folder


def write_bundle(bundle: Bundle, folder: Path) -> None:
    """Writes `bundle.json` into `folder`."""
    write_text(bundle.model_dump_json(indent=2), folder / BUNDLE)


def read_bundle(folder: Path, target: str) -> Bundle:
    """The bundle in `folder`, for the runtime `target`, with its files checked; ValueError saying what is wrong."""
    path = folder / BUNDLE
    if not path.is_file():
        raise ValueError(f"'{folder}' is not a bundle: it has no {BUNDLE}; `snapgen export` makes one")
    content = read_json(path, LIMIT)
    if content.get("format") != FORMAT:
        raise ValueError(f"{path} does not describe a bundle: its format is {content.get('format')!r:.100}")
    if (content.get("version"), type(content.get("version"))) != (VERSION, int):
        raise ValueError(
            f"{path} is of version {content.get('version')!r:.100}, expected {VERSION}: export the model again"
        )
    try:
        bundle = Bundle.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"{path}: {first_mistake(error)}") from None
    if bundle.target != target:
        raise ValueError(f"'{folder}' is a bundle for {bundle.target}, expected one for {target}")
    _check_networks(bundle, path)
    _check_files(bundle, folder)
    return bundle


def other_files(folder: Path) -> list[str]:
    """What `folder`, if there is one, holds beside a bundle, sorted; all of it if no bundle is described there."""
    try:
        content = read_json(folder / BUNDLE, LIMIT)
    except (OSError, ValueError):
        content = {}
    listed: set[str] = set()
    if content.get("format") == FORMAT and isinstance(content.get("files"), dict):
        listed = {BUNDLE, *content["files"]}
    found = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return [name for path in found if (name := path.relative_to(folder).as_posix()) not in listed]


def _check_networks(bundle: Bundle, path: Path) -> None:
    """ValueError unless all networks that are needed are listed, with files that are."""
    needed = [UNET, DECODER, *(text.network for text in bundle.texts if text.tokenizer is not None)]
    if missing := [name for name in needed if name not in bundle.networks]:
        raise ValueError(f"{path} lists no network {missing[0]}")
    named = [network.file for network in bundle.networks.values()]
    for name in named + [text.tokenizer for text in bundle.texts if text.tokenizer is not None]:
        if not any(file == name or file.startswith(name + "/") for file in bundle.files):
            raise ValueError(f"{path} names {name}, but does not list its size and hash among the files")


def _check_files(bundle: Bundle, folder: Path) -> None:
    """ValueError naming the first file that is missing or altered."""
    for name, facts in bundle.files.items():
        file = folder / name
        if not file.is_file():
            raise ValueError(f"{file} is missing")
        if file.stat().st_size != facts.bytes or sha256(file) != facts.sha256:
            raise ValueError(f"{file} is not the file that the bundle was made with: its size or hash differs")
