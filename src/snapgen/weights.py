"""Weights on disk: saves and loads safetensors, loads only complete networks, and records where a model came from."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from diffusers.configuration_utils import ConfigMixin
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import PreTrainedConfig

from snapgen.files import JSON_LIMIT, atomic_file, manifest, read_json
from snapgen.machine.device import library_versions
from snapgen.messages import one_line

ABSURD = 1e16  # the square of a weight beyond it, or of a product with it, overflows
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")  # safetensors' names
MEASURABLE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

# No file of a configuration comes near these.
LARGEST_INTEGER = 2**31
MOST_LAYERS = 256
EPSILON = re.compile("(^|_)eps(ilon)?$")
DEPTH = re.compile("(layers?(_per_block)?|blocks?|depths?|stages?)$")  # names of settings that count layers

INDEX = re.compile(r"\.safetensors\.index(\.[\w-]+)?\.json$")
WEIGHTS = re.compile(r"(model|diffusion_pytorch_model)(\.[\w.-]+)?(-\d+-of-\d+)?\.safetensors")
PLAIN_NAME = re.compile(r"[\w-][\w.-]*\.safetensors")

# Tied weights are registered twice, and once more when they are read; a small network may lack most of its weights.
SPARE, SLACK = 8, 2**22

# Weight files of a variant, whole or in shards: name.fp16.safetensors, name.fp16-00001-of-00002.safetensors.
VARIANT = re.compile(r"[^.]+\.([^.-]+)(?:-\d{5}-of-\d{5})?\.safetensors")


def save_file_atomic(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes `tensors` (any device or memory format; no two may share storage) as the safetensors file `path`."""
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    with atomic_file(path) as temporary, system_errors():
        safetensors.torch.save_file(contiguous, temporary, metadata=metadata)


@contextmanager
def system_errors() -> Iterator[None]:
    """Turns a failure of safetensors to write, such as on a full disk, into the OSError that it was."""
    try:
        yield
    except SafetensorError as error:
        if (number := re.search(r"os error (\d+)", str(error))) is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def load_file(path: Path, device: str = "cpu") -> dict[str, Tensor]:
    """The tensors in the safetensors file `path`; ValueError naming the file if it is truncated or of another kind."""
    try:
        return safetensors.torch.load_file(path, device=device)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {one_line(error)}") from None


def load_pretrained(load: Callable[..., Any], place: str, **settings: Any) -> Any:
    """Calls `load`, a library's `from_pretrained`, on folder or hub name `place`; one-line ValueError if it fails.

    Python code that comes with a model is never run, and nobody is asked whether it may be.
    """
    check_files(Path(place, settings.get("subfolder") or ""))
    return _attempt(load, place, trust_remote_code=False, **settings)


def only_variant(folder: Path) -> str | None:
    """The variant of the weights in `folder`, such as "fp16", if they are all of one; None if they have no variant.

    For example, `diffusion_pytorch_model.fp16.safetensors` without `diffusion_pytorch_model.safetensors`.
    """
    names = [VARIANT.fullmatch(path.name) for path in folder.glob("*.safetensors")]
    variants = {name and name[1] for name in names}
    return variants.pop() if len(variants) == 1 else None


def load_network(kind: Any, place: str, **settings: Any) -> Any:
    """The network of class `kind` in the folder or hub name `place`; one-line ValueError unless it is complete.

    diffusers and transformers fill missing weights with random numbers and only warn. They also read pickles, build
    whatever size a configuration names, and cast whatever numbers they find: here, weights are safetensors of finite
    floating-point numbers, and the network has as many as its files. A folder may hold nothing but a variant, such as
    fp16.
    """
    subfolder = settings.get("subfolder")
    where = "/".join([place, *filter(None, [subfolder])])
    folder = Path(place, subfolder or "")
    if variant := only_variant(folder):
        settings = {"variant": variant} | settings
    load_config(kind, place, subfolder)
    trust = {} if issubclass(kind, ConfigMixin) else {"trust_remote_code": False}  # diffusers' networks have no code
    headers = tensor_headers(folder)
    with parameters_at_most(sum(header.size for header in headers.values()), where) if headers else nullcontext():
        network, report = _attempt(
            kind.from_pretrained,
            place,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            **trust,
            **settings,
        )
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{where} lacks {len(missing)} tensors of its {type(network).__name__}, such as {missing[0]}")
    for tensor, found, expected in report["mismatched_keys"]:
        raise ValueError(f"{where}: {tensor} has shape {list(found)}, expected {list(expected)}")
    numbers = {name.rpartition(".")[2] for name, buffer in network.named_buffers() if not buffer.is_floating_point()}
    for name, header in headers.items():
        if header.dtype not in FLOATS and name.rpartition(".")[2] not in numbers:
            raise ValueError(f"{where}: {name} holds {header.dtype}, floating-point numbers are expected")
    floats = {name: buffer for name, buffer in network.named_buffers() if buffer.is_floating_point()}
    check_healthy(dict(network.named_parameters()) | floats, where)
    return network


def load_config(kind: Any, place: str, subfolder: str | None = None) -> dict[str, Any]:
    """The configuration of a network of class `kind` (or an `Auto` class) in the folder or hub name `place`.

    ValueError naming the first setting that no network has; the network itself is not built.
    """
    check_files(Path(place, subfolder or ""))
    if issubclass(kind, ConfigMixin):
        config = _attempt(kind.load_config, place, subfolder=subfolder)
    else:
        config, _ = _attempt(PreTrainedConfig.get_config_dict, place, subfolder=subfolder or "")
    where = "/".join([place, *filter(None, [subfolder])])
    if not isinstance(config, dict) or not config:
        raise ValueError(f"{where} has no configuration: a config.json with settings is expected")
    _check_settings(config, where)
    return config


def _check_settings(settings: Mapping[str, Any], where: str) -> None:
    """ValueError for a number that no network has, quantised weights, or code from elsewhere, in `settings`."""
    if settings.get("quantization_config") is not None:
        raise ValueError(f"{where} holds quantised weights: floating-point numbers are expected")
    for key, value in settings.items():
        name = str(key)
        tokens = value if isinstance(value, list) and value else [value]
        if name.endswith("_token_id") and value is not None and not all(isinstance(token, int) for token in tokens):
            raise ValueError(f"{where}: its configuration sets {name[:100]} to {reprlib.repr(value)}, not to a token")
        if EPSILON.search(name) and not (isinstance(value, float) and 0 < value < 1):
            raise ValueError(f"{where}: its configuration sets {name[:100]} to {reprlib.repr(value)}: expected 0 to 1")
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                _check_settings(item, where)
            elif isinstance(item, int) and abs(item) > (MOST_LAYERS if DEPTH.search(name) else LARGEST_INTEGER):
                raise ValueError(f"{where}: its configuration sets {name[:100]} to {str(item)[:20]}: that is too large")
            elif isinstance(item, float) and not math.isfinite(item):
                raise ValueError(f"{where}: its configuration sets {name[:100]} to {item}: finite numbers are expected")
            elif isinstance(item, str) and name.endswith("attn_implementation") and "/" in item:
                raise ValueError(f"{where}: its configuration names code on the hub ({name}), which is never run")


def _attempt(load: Callable[..., Any], place: str, **settings: Any) -> Any:
    """Calls `load` on `place`; whatever it raises becomes a one-line ValueError that names the place."""
    try:
        return load(place, **settings)
    except Exception as error:  # each library has its own for missing, truncated, offline or other cases
        where = "/".join([place, *filter(None, [settings.get("subfolder")])])
        reason = one_line(error, 300) or type(error).__name__
        if "trust_remote_code" in str(error):
            reason = "it needs Python code of its own, which is never run; only classes of the libraries are loaded"
        raise ValueError(f"{where} cannot be loaded: {reason}") from error


def check_files(folder: Path) -> None:
    """ValueError for what no model folder holds: pipes and devices, endless files, weights in other places."""
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if file.exists() and not file.is_file() and not file.is_dir():
            raise ValueError(f"{file} is a pipe or device: a model folder holds files")
        if file.suffix in (".json", ".txt", ".model") and file.is_file() and file.stat().st_size > JSON_LIMIT:
            raise ValueError(f"{file} is longer than {JSON_LIMIT // 2**20} MiB, the most that is read of such a file")
        if INDEX.search(file.name):
            _shards(file)


def _shards(index: Path) -> set[str]:
    """The files that the index of a sharded network's weights names."""
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise ValueError(f"{index} is damaged: it has no weight_map from tensors to files")
    names = set(shards.values())
    for name in sorted(names):
        if not PLAIN_NAME.fullmatch(name):
            raise ValueError(f"{index} names {name[:100]!r}: a .safetensors file beside it is expected")
    return names


class Header(NamedTuple):
    """What a safetensors file says of a tensor."""

    dtype: str
    size: int  # numbers in it


def tensor_headers(folder: Path) -> dict[str, Header]:
    """The headers of all tensors in the weights of the network in `folder`; none if it is no folder."""
    names = {file.name for file in folder.glob("*.safetensors") if WEIGHTS.fullmatch(file.name)}
    for index in folder.glob("*.json"):
        names |= _shards(index) if INDEX.search(index.name) else set()
    headers = {}
    for file in sorted(folder / name for name in names):
        try:
            with safe_open(file, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118, it is no dictionary
                    part = tensors.get_slice(name)
                    headers[name] = Header(part.get_dtype(), math.prod(part.get_shape()))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is damaged or no safetensors file: {one_line(error)}") from None
    return headers


@contextmanager
def parameters_at_most(count: int, where: str) -> Iterator[None]:
    """Stops building a network, before memory is filled, that has far more parameters than `count` numbers on disk."""
    limit, registered = SPARE * count + SLACK, 0

    def check(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter) -> None:
        nonlocal registered
        registered += parameter.numel()
        if registered > limit:
            raise ValueError(f"its configuration describes far more than the {count} numbers that its weights hold")

    hook = register_module_parameter_registration_hook(check)
    try:
        yield
    finally:
        hook.remove()


def check_healthy(weights: Mapping[str, Tensor], where: str) -> None:
    """ValueError naming the first of `weights` that is not of a floating-point type, finite and below `ABSURD`.

    `where`: what to call their place. One pass over the numbers, without temporary memory.
    """
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{where}: {name} holds {tensor.dtype}, floating-point numbers are expected")
        if not tensor.numel():
            continue
        for value in extremes(tensor):
            if not abs(value) < ABSURD:
                raise ValueError(f"{where}: {name} holds {value:g}: finite weights are expected")


def extremes(tensor: Tensor) -> tuple[float, float]:
    """The smallest and the largest number of `tensor`, of a floating-point type and not empty; NaN if any number is."""
    numbers = tensor.detach() if tensor.dtype in MEASURABLE else tensor.detach().float()
    smallest, largest = torch.aminmax(numbers)
    return smallest.item(), largest.item()


def network_hash(parts: dict[str, torch.nn.Module], settings: dict[str, Any] | None = None) -> str:
    """The SHA-256 of the names, shapes, types and values of all tensors of `parts`, and of plain `settings`."""
    digest = hashlib.sha256()
    for name, part in sorted(parts.items()):
        for tensor_name, tensor in sorted(part.state_dict().items()):
            digest.update(f"{name}.{tensor_name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def provenance(folder: Path, recipe: Mapping[str, Any], step: int) -> dict[str, Any]:
    """Where the model in `folder` came from: its recipe, step, library versions, and the SHA-256 of its files."""
    return {"recipe": dict(recipe), "step": step, "versions": library_versions(), "files": manifest(folder)}
