"""The runtimes that a model can be exported to, and what each must reach."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from snapgen.messages import Notify
from snapgen.registry import load_attribute

if TYPE_CHECKING:
    from snapgen.export.parts import Part
    from snapgen.runtime.bundle import Network
    from snapgen.runtime.pipeline import Runner


class Converter(Protocol):
    """Converts networks for one runtime, and runs them there to measure what it made."""

    def convert(self, part: Part, folder: Path, precision: str, notify: Notify) -> Network:
        """Writes `part` into `folder`, and says how to call it; ValueError if that is impossible."""
        ...

    def load(self, network: Network, folder: Path) -> Runner:
        """The written network as a function, with the inputs and outputs of the part it was made from."""
        ...


@dataclass(frozen=True)
class Floor:
    """What a bundle must reach to be written."""

    relative_error: float  # of every network, at most
    psnr: float  # dB of the median picture, at least
    worst_psnr: float = 0.0  # dB of every picture, at least


@dataclass(frozen=True)
class Target:
    """A runtime, by its converter."""

    converter: str  # "module:class"
    precisions: dict[str, Floor]  # of the weights, by name; the first is the default
    packages: tuple[str, ...]  # that it imports, of the extra [export]
    fixed: bool  # whether the sizes of a bundle are fixed when it is made

    def open(self) -> Converter:
        """Its converter."""
        return cast(Converter, load_attribute(self.converter)())


TARGETS = {
    "onnx": Target(
        "snapgen.export.onnx:OnnxConverter",
        {
            "w16": Floor(1e-5, 80, 80),
            "fp32": Floor(1e-5, 80, 80),
            "int8": Floor(3e-2, 25),
            "int8-conv": Floor(5e-2, 25),
        },
        ("onnx", "onnxscript", "onnxruntime"),
        fixed=False,
    ),
    "coreml": Target(
        "snapgen.export.coreml:CoreMLConverter",
        {"fp16": Floor(5e-3, 50, 35), "int8": Floor(3e-2, 35), "6bit": Floor(1e-1, 25)},
        ("coremltools", "sklearn"),
        fixed=True,
    ),
    "executorch": Target(
        "snapgen.export.executorch:ExecuTorchConverter",
        {"fp32": Floor(1e-5, 80, 80), "int8": Floor(5e-2, 25)},
        ("executorch", "torchao"),
        fixed=True,
    ),
}
