"""Core ML: networks as packages (`.mlpackage`) for iOS 17, macOS 14 and later, in fp16 or with compressed weights.

A network is traced by torch and converted by coremltools, for the sizes of its example inputs and no others. Its inputs
and outputs keep their names and are fp32, ids and masks int32: what an app has at hand. Inside it computes in fp16, as
the Neural Engine does, but for the sinusoids of the timestep, whose phases reach 1000 radians.

No Mac is needed: `snapgen.export.mil` evaluates what was written.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from snapgen.export.parts import Part, TextPart
from snapgen.export.quiet import quiet
from snapgen.messages import Notify, one_line
from snapgen.runtime.bundle import Network, Port
from snapgen.runtime.pipeline import Runner

with quiet():  # on import it lists what only a Mac has
    import coremltools as ct
    import coremltools.optimize.coreml as compression
    from coremltools.converters.mil import Builder, register_torch_op

    from snapgen.export.mil import MilProgram, check

ARRAYS = ct.proto.FeatureTypes_pb2.ArrayFeatureType
KMEANS_MOST = 50_000_000  # parameters; for more, k-means takes an hour and longer: then palettes are evenly spaced
UNSEEN = -30_000.0  # added to the scores of tokens that must not be attended to; fp16 ends at -65504
SMALLEST_PEAK = 1e-2  # see `rms_norm`


class CoreMLConverter:
    """Converts networks to Core ML packages, and evaluates them without Core ML."""

    def convert(self, part: Part, folder: Path, precision: str, notify: Notify) -> Network:
        """Writes `NAME.mlpackage`; ValueError if Core ML cannot take the network."""
        count, compress = sum(parameter.numel() for parameter in part.module.parameters()), COMPRESSIONS[precision]
        notify(f"Core ML: converting the {part.name}, {count / 1e6:.1f} M parameters")
        try:
            module = traceable(part.module, part.inputs) if isinstance(part.module, TextPart) else part.module
            with quiet():
                model = _convert(module, part)
            if compress:
                notify(f"Core ML: compressing the {part.name} to {precision}")
                with quiet():
                    model = compress(model, count)
            spec = model.get_spec()
            check(spec)
        except Exception as error:  # coremltools raises all kinds
            raise ValueError(f"Core ML cannot take the {part.name}: {one_line(error, 300)}") from error
        file = f"{part.name}.mlpackage"
        model.save(str(folder / file))
        ports = spec.description
        return Network(file=file, inputs=[*map(_port, ports.input)], outputs=[*map(_port, ports.output)])

    def load(self, network: Network, folder: Path) -> Runner:
        """The package's program, evaluated operation by operation."""
        with quiet():
            program = MilProgram(folder / network.file)

        def run(inputs: Any) -> dict[str, np.ndarray]:
            given = {port.name: torch.from_numpy(np.asarray(inputs[port.name])) for port in network.inputs}
            return {name: value.numpy() for name, value in program(given).items()}

        return run


def _port(feature: Any) -> Port:
    """An input or output as the package has it."""
    kinds: dict[int, Literal["float32", "int32"]] = {ARRAYS.FLOAT32: "float32", ARRAYS.INT32: "int32"}
    array = feature.type.multiArrayType
    return Port(name=feature.name, dtype=kinds[array.dataType], shape=list(array.shape))


def _convert(module: nn.Module, part: Part) -> Any:
    """The network of `part`, `module`, as Core ML has it."""
    examples = {name: value if value.is_floating_point() else value.int() for name, value in part.inputs.items()}
    with torch.no_grad():
        traced = torch.jit.trace(module.eval(), tuple(examples.values()), check_trace=False)
    return ct.convert(
        traced,
        inputs=[
            ct.TensorType(name=name, shape=tuple(value.shape), dtype=value.numpy().dtype.type)
            for name, value in examples.items()
        ],
        outputs=[ct.TensorType(name=name, dtype=np.float32) for name in part.outputs],
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS17,
        compute_precision=ct.transform.FP16ComputePrecision(op_selector=lambda operation: not of_time(operation)),
        skip_model_load=True,
    )


def of_time(operation: Any) -> bool:
    """Whether `operation` comes from the timestep alone, before any layer with weights: it stays in fp32.

    fp16 has steps of 0.5 near 1000. With the sinusoids in fp16, the miniature's error at the timestep 857.3 doubles.
    """
    if operation.op_type in ("linear", "const"):
        return False
    given = [variable for variable in operation.get_flattened_inputs() if variable.val is None]
    return bool(given) and all(
        variable.name == "timestep" if variable.op is None else of_time(variable.op) for variable in given
    )


def _int8(model: Any, parameters: int) -> Any:
    """Weights in 8 bits, with a scale for each output channel."""
    config = compression.OpLinearQuantizerConfig(mode="linear_symmetric")
    return compression.linear_quantize_weights(model, compression.OptimizationConfig(global_config=config))


def _six_bits(model: Any, parameters: int) -> Any:
    """Weights as one of 64 values, for each tensor its own."""
    mode = "kmeans" if parameters <= KMEANS_MOST else "uniform"
    config = compression.OpPalettizerConfig(mode=mode, nbits=6)
    return compression.palettize_weights(model, compression.OptimizationConfig(global_config=config))


COMPRESSIONS: dict[str, Callable[[Any, int], Any] | None] = {"fp16": None, "int8": _int8, "6bit": _six_bits}


class Attending(nn.Module):
    """A text model that is given which token attends to which: transformers' code for that cannot be traced."""

    def __init__(self, model: Any, causal: bool) -> None:
        super().__init__()
        self.model = model
        self.causal = causal

    def forward(self, input_ids: Tensor, attention_mask: Tensor, output_hidden_states: bool) -> Any:
        """What the model returns for ids and mask, B N'."""
        tokens = input_ids.shape[1]
        seen = attention_mask[:, None, None, :].expand(-1, 1, tokens, -1).float()
        if self.causal:
            seen = seen * torch.ones(tokens, tokens).tril()
        added = (1 - seen) * UNSEEN  # B 1 N' N'
        return self.model(input_ids=input_ids, attention_mask=added, output_hidden_states=output_hidden_states)


class TraceableText(TextPart):
    """A `TextPart` that can be traced."""

    def __init__(self, text: TextPart, causal: bool) -> None:
        nn.Module.__init__(self)
        self.model = Attending(text.model, causal)
        self.layer, self.pooled = text.layer, text.pooled


def traceable(text: TextPart, inputs: dict[str, Tensor]) -> TraceableText:
    """`text` in a form that can be traced, for inputs like `inputs`; ValueError if neither form gives the same."""
    tokens = inputs["input_ids"].shape[1]
    ids = torch.arange(tokens)[None] * 7 % text.model.get_input_embeddings().num_embeddings
    mask = (torch.arange(tokens)[None] < (tokens + 1) // 2).long()
    with torch.no_grad():
        expected = text(ids, mask)
        for causal in (False, True):
            candidate = TraceableText(text, causal)
            pairs = zip(candidate(ids, mask), expected, strict=True)
            if all(torch.allclose(found, right, rtol=1e-3, atol=1e-3) for found, right in pairs):
                return candidate
    raise ValueError(f"tokens of a {type(text.model).__name__} attend neither to all others nor to all before them")


@register_torch_op(torch_alias=["int"], override=True)
def _int(context: Any, node: Any) -> None:
    """A number as an integer, also if the number is a constant of shape (1,), which coremltools' own refuses."""
    x = context[node.inputs[0]]
    if x.val is not None:
        context.add(Builder.const(val=int(np.asarray(x.val).item()), name=node.name))
    else:
        x = Builder.squeeze(x=x) if x.shape else x
        context.add(Builder.cast(x=x, dtype="int32", name=node.name))


@register_torch_op(override=True)
def rms_norm(context: Any, node: Any) -> None:
    """RMS normalisation that neither overflows fp16 nor divides zero by zero.

    coremltools' own divides by the largest magnitude. That is 0 for the keys of masked tokens, whose states are zeros,
    and of the empty prompt, and the picture was NaN. Here it is at least `SMALLEST_PEAK`, and epsilon keeps its
    meaning: x / sqrt(mean(x^2) + eps) with x = peak * y is y / sqrt(mean(y^2) + eps / peak^2).
    """
    x, shape, weight, epsilon = (context[name] for name in node.inputs)
    axes = list(range(-len(shape.val), 0))
    root = (torch.finfo(torch.float32).eps if epsilon is None or epsilon.val is None else epsilon.val) ** 0.5
    peak = Builder.maximum(x=Builder.reduce_max(x=Builder.abs(x=x), axes=axes, keep_dims=True), y=SMALLEST_PEAK)
    y = Builder.real_div(x=x, y=peak)
    mean = Builder.reduce_mean(x=Builder.square(x=y), axes=axes, keep_dims=True)
    rms = Builder.sqrt(x=Builder.add(x=mean, y=Builder.square(x=Builder.real_div(x=root, y=peak))))
    if weight is None:
        context.add(Builder.real_div(x=y, y=rms, name=node.name))
    else:
        context.add(Builder.mul(x=Builder.real_div(x=y, y=rms), y=weight, name=node.name))
