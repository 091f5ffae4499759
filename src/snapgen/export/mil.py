"""Evaluates the program of a Core ML package (MIL) with torch, operation by operation, on any machine.

It reads what was written: the operations, the weights as they are stored, compressed ones as they decompress. Each
operation computes in fp32, and its result is rounded to the type that the program gives it. So it shows that the
conversion is right, and what the rounding of weights and of activations costs, including values beyond fp16's range. It
can't show how Apple's kernels compute: they may add up in fp16, approximate functions, or fuse operations and round
less often. It needs memory for the weights in fp32, and is slower than torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import coremltools as ct
import torch
import torch.nn.functional as F
from coremltools.converters.mil.frontend.milproto.load import load as load_milproto
from coremltools.converters.mil.mil import types
from torch import Tensor

HALF_ONLY = {"conv", "linear", "matmul"}  # in fp32, these keep a network from the Neural Engine


class Call:
    """An operation of the program with its inputs."""

    def __init__(self, operation: Any, tensor: Callable[[Any], Tensor]) -> None:
        """`tensor`: the value of a variable."""
        self.inputs, self.tensor = operation.inputs, tensor

    def __getitem__(self, name: str) -> Tensor:
        """The input `name`."""
        return self.tensor(self.inputs[name])

    def optional(self, name: str) -> Tensor | None:
        """The input `name`, if it is given."""
        return None if self.inputs.get(name) is None else self[name]

    def several(self, name: str) -> list[Tensor]:
        """The inputs of the list `name`."""
        return [self.tensor(variable) for variable in self.inputs[name]]

    def setting(self, name: str) -> Any:
        """The constant `name` as Python has it; None if it is not given."""
        variable = self.inputs.get(name)
        value: Any = None if variable is None else variable.val
        return value.tolist() if hasattr(value, "tolist") else value


def _of(function: Callable[..., Tensor], *names: str) -> Callable[[Call], Tensor]:
    """`function` of the inputs `names`."""
    return lambda call: function(*(call[name] for name in names))


def _cast(call: Call) -> Tensor:
    x, dtype = call["x"], call.setting("dtype")
    if dtype.startswith("fp"):
        return x.float()
    if dtype == "bool":
        return x != 0
    integers = x.to(torch.int64)
    if dtype == "uint16":
        return integers & 0xFFFF
    return integers.to(getattr(torch, dtype)).to(torch.int64)  # what does not fit wraps around


def _conv(call: Call) -> Tensor:
    top, bottom, left, right = call.setting("pad") if call.setting("pad_type") == "custom" else (0, 0, 0, 0)
    padded = F.pad(call["x"], (left, right, top, bottom))
    strides, dilations, groups = (call.setting(name) for name in ("strides", "dilations", "groups"))
    return F.conv2d(padded, call["weight"], call.optional("bias"), strides, 0, dilations, groups)


def _matmul(call: Call) -> Tensor:
    x, y = call["x"], call["y"]
    x = x.mT if call.setting("transpose_x") else x
    return x @ (y.mT if call.setting("transpose_y") else y)


def _layer_norm(call: Call) -> Tensor:
    x, axes = call["x"], call.setting("axes")
    shape = [x.shape[axis] for axis in axes]  # the last ones
    return F.layer_norm(x, shape, call.optional("gamma"), call.optional("beta"), call.setting("epsilon"))


def _batch_norm(call: Call) -> Tensor:
    gamma, beta = call.optional("gamma"), call.optional("beta")
    return F.batch_norm(call["x"], call["mean"], call["variance"], gamma, beta, eps=call.setting("epsilon"))


def _gelu(call: Call) -> Tensor:
    return F.gelu(call["x"], approximate={"EXACT": "none", "TANH_APPROXIMATION": "tanh"}[call.setting("mode")])


def _split(call: Call) -> Sequence[Tensor]:
    x, axis, sizes = call["x"], call.setting("axis"), call.setting("split_sizes")
    return x.split(sizes, axis) if sizes else x.chunk(call.setting("num_splits"), axis)


def _reshape(call: Call) -> Tensor:
    x = call["x"]
    return x.reshape([size or x.shape[axis] for axis, size in enumerate(call.setting("shape"))])


def _slice(call: Call) -> Tensor:
    x, begin, end = call["x"], call.setting("begin"), call.setting("end")
    steps = call.setting("stride") or [1] * x.ndim
    from_first, to_last, single = (
        call.setting(f"{name}_mask") or [False] * x.ndim for name in ("begin", "end", "squeeze")
    )
    return x[
        tuple(
            begin[axis]
            if single[axis]
            else slice(None if from_first[axis] else begin[axis], None if to_last[axis] else end[axis], steps[axis])
            for axis in range(x.ndim)
        )
    ]


def _gather(call: Call) -> Tensor:
    x, indices, axis = call["x"], call["indices"], call.setting("axis")
    axis = axis % x.ndim
    picked = x.index_select(axis, indices.reshape(-1))
    return picked.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _gather_nd(call: Call) -> Tensor:
    return call["x"][tuple(call["indices"].unbind(-1))]


def _upsample(call: Call) -> Tensor:
    scale = tuple(float(call.setting(f"scale_factor_{side}") or 1) for side in ("height", "width"))
    return F.interpolate(call["x"], scale_factor=scale, mode="nearest")


def _squeeze(call: Call) -> Tensor:
    x, axes = call["x"], call.setting("axes")
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _expand_dims(call: Call) -> Tensor:
    x, axes = call["x"], call.setting("axes")
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "cos": torch.cos,
    "exp": torch.exp,
    "logical_not": torch.logical_not,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "sin": torch.sin,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tanh": torch.tanh,
}
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "equal": torch.eq,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "logical_and": torch.logical_and,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "mul": torch.mul,
    "pow": torch.pow,
    "real_div": torch.div,
    "sub": torch.sub,
}
OPERATIONS: dict[str, Callable[[Call], Tensor | Sequence[Tensor]]] = {
    **{name: _of(function, "x") for name, function in UNARY.items()},
    **{name: _of(function, "x", "y") for name, function in BINARY.items()},
    "batch_norm": _batch_norm,
    "cast": _cast,
    "concat": lambda call: torch.cat(call.several("values"), call.setting("axis")),
    "conv": _conv,
    "expand_dims": _expand_dims,
    "gather": _gather,
    "gather_nd": _gather_nd,
    "gelu": _gelu,
    "layer_norm": _layer_norm,
    "linear": lambda call: F.linear(call["x"], call["weight"], call.optional("bias")),
    "matmul": _matmul,
    "pixel_shuffle": lambda call: F.pixel_shuffle(call["x"], call.setting("upscale_factor")),
    "reduce_argmax": lambda call: call["x"].argmax(call.setting("axis"), call.setting("keep_dims")),
    "reduce_max": lambda call: call["x"].amax(call.setting("axes"), call.setting("keep_dims")),
    "reduce_mean": lambda call: call["x"].mean(call.setting("axes"), call.setting("keep_dims")),
    "reduce_sum": lambda call: call["x"].sum(call.setting("axes"), call.setting("keep_dims")),
    "reshape": _reshape,
    "rsqrt": lambda call: torch.rsqrt(call["x"] + call.setting("epsilon")),
    "select": lambda call: torch.where(call["cond"], call["a"], call["b"]),
    "slice_by_index": _slice,
    "softmax": lambda call: call["x"].softmax(call.setting("axis")),
    "split": _split,
    "squeeze": _squeeze,
    "stack": lambda call: torch.stack(call.several("values"), call.setting("axis")),
    "tile": lambda call: call["x"].tile(call.setting("reps")),
    "transpose": lambda call: call["x"].permute(call.setting("perm")),
    "upsample_nearest_neighbor": _upsample,
}


class MilProgram:
    """The program of a Core ML package, ready to be evaluated."""

    def __init__(self, package: Path) -> None:
        """Reads it; ValueError if it is not one that Core ML takes and this module knows."""
        model = ct.models.MLModel(str(package), skip_model_load=True)
        spec = model.get_spec()
        check(spec)
        self.function = load_milproto(spec, spec.specificationVersion, model.weights_dir).functions["main"]
        self.steps = [operation for operation in self.function.operations if not _is_constant(operation)]
        self.constants: dict[str, Tensor] = {}
        self.last_use = {
            variable.name: index for index, step in enumerate(self.steps) for variable in step.get_flattened_inputs()
        }
        kept = len(self.steps)
        self.last_use |= {output.name: kept for output in self.function.outputs}

    @torch.inference_mode()
    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Its outputs by name, floating-point ones in fp32; ValueError if the inputs are not of its shapes."""
        values = {}
        for name, variable in self.function.inputs.items():
            if tuple(inputs[name].shape) != tuple(variable.shape):
                raise ValueError(f"{name} is {list(inputs[name].shape)}, expected {list(variable.shape)}")
            values[name] = _in_type(inputs[name], variable)

        def tensor(variable: Any) -> Tensor:
            return self._constant(variable) if variable.name not in values else values[variable.name]

        for index, step in enumerate(self.steps):
            result = OPERATIONS[step.op_type](Call(step, tensor))
            for variable, value in zip(step.outputs, [result] if isinstance(result, Tensor) else result, strict=True):
                values[variable.name] = _in_type(value, variable)
            for variable in {*step.get_flattened_inputs(), *step.outputs}:
                if self.last_use.get(variable.name, index) == index:
                    values.pop(variable.name, None)
        return {output.name: values[output.name] for output in self.function.outputs}

    def _constant(self, variable: Any) -> Tensor:
        """A constant, decompressed."""
        if variable.name not in self.constants:
            value = variable.val if variable.op.op_type == "const" else variable.op.materialized_val_inference()
            self.constants[variable.name] = _in_type(torch.as_tensor(value), variable)
        return self.constants[variable.name]


def _is_constant(operation: Any) -> bool:
    return operation.op_type == "const" or operation.op_type.startswith("constexpr_")


def _in_type(value: Tensor, variable: Any) -> Tensor:
    """`value` as a variable holds it: fp32, rounded to fp16 if that is its type; int64; or boolean."""
    if value.is_floating_point():
        return value.half().float() if variable.dtype == types.fp16 else value.float()
    return value if value.dtype == torch.bool else value.to(torch.int64)


def operations(spec: Any) -> list[Any]:
    """The operations of a model's specification that compute something."""
    function = spec.mlProgram.functions["main"]
    return [step for step in function.block_specializations[function.opset].operations if step.type != "const"]


def check(spec: Any) -> None:
    """ValueError unless this module knows all operations, and those with weights are in fp16.

    coremltools itself refuses tensors of more than five axes.
    """
    for step in operations(spec):
        if step.type.startswith("constexpr_"):
            continue
        if step.type not in OPERATIONS:
            raise ValueError(f"it computes '{step.type}', which snapgen cannot check")
        for output in step.outputs:
            if step.type in HALF_ONLY and output.type.tensorType.dataType != ct.proto.MIL_pb2.FLOAT16:
                raise ValueError(f"'{output.name}' needs more than fp16: a weight is beyond its {65504:,}")
