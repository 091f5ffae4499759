"""ExecuTorch: networks as `.pte` files whose operations XNNPACK computes, on any CPU.

The UNet and the decoder are rewritten for one size first (`snapgen.export.fixed`), so that a delegate takes them
whole; a text encoder is taken as it is, and XNNPACK computes what it can of it, ExecuTorch's portable operations the
rest. In `int8`, the weights of convolutions and linear layers are stored in 8 bits, and their inputs are rounded to 8
bits when the network runs: that needs no data to calibrate with, and was more exact here than ranges fixed before.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from snapgen.export.fixed import FixedDecoder, FixedUNet
from snapgen.export.parts import DecoderPart, Part, UNetPart
from snapgen.messages import Notify, one_line
from snapgen.models.autoencoder import SnapGenAutoencoder
from snapgen.models.unet import SnapGenUNet
from snapgen.runtime.bundle import DECODER, UNET, Network, Port
from snapgen.runtime.pipeline import Runner

MOST_DELEGATES = {UNET: 5, DECODER: 1}  # more of them cost memory and time; a text encoder has as many as it needs
MASK = "encoder_attention_mask"  # of the UNet; its file reads numbers, not integers, which XNNPACK does not know

# What int8 leaves in fp32: the constants of the rewrite; the first and the last layers, whose rounding is seen at once
# (and a quantised convolution of the input fails in the runtime); keys and values, small layers that all read the same
# states, which would split the UNet into six delegates.
EXACT_CLASSES = ("FixedFeatureNorm", "FixedRotary")
EXACT_LAYERS = ("post_quant_conv", "conv_in", "conv_out", "to_k", "to_v")


class ExecuTorchConverter:
    """Lowers networks to XNNPACK, and runs them in ExecuTorch's Python runtime."""

    def convert(self, part: Part, folder: Path, precision: str, notify: Notify) -> Network:
        """Writes `part` as a `.pte` file into `folder`; ValueError if the rewrite or ExecuTorch cannot take it."""
        module, inputs = _rewritten(part)
        examples = tuple(inputs.values())
        notify(f"{part.name}: tracing")
        with _converting(part.name):
            program = torch.export.export(module.eval(), examples, strict=False)
        if precision == "int8":
            notify(f"{part.name}: quantising")
            with _converting(part.name):
                program = _quantized(program, examples)
        notify(f"{part.name}: lowering to XNNPACK{', which takes minutes' if part.name == UNET else ''}")
        with _converting(part.name):
            lowered = _lowered(program)
        graph = lowered.exported_program().graph
        _check_delegates(part.name, graph)
        notify(f"{part.name}: writing")
        file = f"{part.name}.pte"
        with _silence(), open(folder / file, "wb") as target:
            lowered.to_executorch().write_to_file(target)
        outputs = (node.meta["val"] for node in graph.output_node().args[0])
        return Network(file=file, inputs=_ports(inputs), outputs=_ports(dict(zip(part.outputs, outputs, strict=True))))

    def load(self, network: Network, folder: Path) -> Runner:
        """The written network, run by ExecuTorch."""
        return _Loaded(network, folder)


class _Loaded:
    """A network that ExecuTorch's runtime has loaded; it takes and returns arrays by name."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.network = network
        with _silence():
            from executorch.runtime import Runtime

            self.program = Runtime.get().load_program(folder / network.file)  # a method does not keep it in memory
            self.method = self.program.load_method("forward")

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Inputs by name -> outputs by name."""
        tensors = [torch.from_numpy(inputs[port.name].astype(port.dtype)) for port in self.network.inputs]
        with _silence():  # XNNPACK looks at the processor when it is first used
            found = self.method.execute(tensors)
        return {port.name: tensor.numpy().copy() for port, tensor in zip(self.network.outputs, found, strict=True)}


def _rewritten(part: Part) -> tuple[nn.Module, dict[str, Tensor]]:
    """The module to convert, and examples of its inputs; ValueError if it is no network of this package."""
    module, inputs = part.module, part.inputs
    if isinstance(module, UNetPart):
        unet = module.unet
        if not isinstance(unet, SnapGenUNet):
            raise ValueError(f"ExecuTorch takes a SnapGenUNet, and the model has a {type(unet).__name__}")
        height, width = inputs["sample"].shape[-2:]
        return FixedUNet(unet, height, width), inputs | {MASK: inputs[MASK].float()}
    if isinstance(module, DecoderPart):
        if not isinstance(module.vae, SnapGenAutoencoder):
            raise ValueError(f"ExecuTorch takes a SnapGenAutoencoder, and the model has a {type(module.vae).__name__}")
        return FixedDecoder(module.vae), inputs
    return module, inputs


def _quantized(program: ExportedProgram, examples: tuple[Tensor, ...]) -> ExportedProgram:
    """`program` with 8-bit weights per channel, and operations that round the layers' inputs when it runs."""
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    config = xnnpack.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    quantizer = xnnpack.XNNPACKQuantizer().set_global(config).set_filter_function(_tolerant)
    quantizer.transform_for_annotation = lambda graph: graph  # its own makes floats of a text encoder's integers
    prepared = prepare_pt2e(program.module(), quantizer)
    with torch.no_grad():
        prepared(*examples)
    return torch.export.export(convert_pt2e(prepared), examples, strict=False)


def _tolerant(node: torch.fx.Node) -> bool:
    """Whether int8 is enough for a node, by the modules that it comes from."""
    modules = node.meta.get("nn_module_stack", {}).values()
    return not any(
        str(path).rpartition(".")[2] in EXACT_LAYERS or str(kind).rpartition(".")[2] in EXACT_CLASSES
        for path, kind in modules
    )


def _lowered(program: ExportedProgram) -> Any:
    """`program` in ExecuTorch's operations, with all that XNNPACK can compute delegated to it."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    return to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])


def count_delegates(graph: torch.fx.Graph) -> int:
    """How many parts of a lowered graph a delegate computes."""
    return sum(node.target is torch.ops.higher_order.executorch_call_delegate for node in graph.nodes)


def _check_delegates(name: str, graph: torch.fx.Graph) -> None:
    """ValueError if the network `name` falls into too many delegates."""
    count, most = count_delegates(graph), MOST_DELEGATES.get(name)
    if most is not None and not 1 <= count <= most:
        raise ValueError(
            f"the network {name} falls into {count} delegates, expected 1 to {most}: "
            "this version of executorch does not delegate some of its operations"
        )


def _ports(tensors: Mapping[str, Tensor]) -> list[Port]:
    """The description of inputs or outputs."""
    return [
        Port.model_validate(
            {"name": name, "dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
        )
        for name, tensor in tensors.items()
    ]


@contextmanager
def _converting(name: str) -> Iterator[None]:
    """Silences the libraries, and turns whatever they raise about the network `name` into a ValueError of one line."""
    with _silence():
        try:
            yield
        except MemoryError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {one_line(error, 200)}"
            raise ValueError(f"ExecuTorch cannot take the network {name}: {reason}") from error


@contextmanager
def _silence() -> Iterator[None]:
    """Hides warnings and all that Python or C++ code writes to standard error."""
    sys.stderr.flush()
    shown = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(shown, 2)
        os.close(shown)
