"""ONNX, for ONNX Runtime on computers, phones and in browsers: opset 20, any batch, size and number of tokens.

Precisions of the weights: `w16` stores in fp16 what it holds exactly, and computes in fp32 (half the size, the same
result in any runtime); `fp32`; `int8` also stores the matrices of MatMul and Gemm in 8 bits, and multiplies in them
(`quantize_dynamic`); `int8-conv` does so with the UNet's 1x1 convolutions, too, as products of matrices: faster at full
size, and less exact. Other convolutions are slower in 8 bits, and stay.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch.export import Dim

from snapgen.export.parts import Part
from snapgen.export.quiet import quiet
from snapgen.messages import Notify, one_line
from snapgen.runtime.bundle import UNET, Network, Port
from snapgen.runtime.onnx import open_network
from snapgen.runtime.pipeline import Runner

# ONNX Runtime's attention of opset 23 does not broadcast a mask B 1 1 M over the queries.
OPSET = 20
LARGEST_FILE = 2**31 - 2**20  # bytes; protobuf's limit, and some room: larger networks keep their weights beside it
EXACT_LAYERS = ("conv_in", "conv_out")  # whose rounding in 8 bits is seen at once
FEWEST = 256  # numbers of a tensor that is worth a cast
DTYPES: dict[int, Any] = {TensorProto.FLOAT: "float32", TensorProto.INT64: "int64"}  # of inputs and outputs


class OnnxConverter:
    """Converts parts with torch's exporter."""

    def convert(self, part: Part, folder: Path, precision: str, notify: Notify) -> Network:
        """Writes `part`, `precision` "w16", "fp32", "int8" or "int8-conv"; ValueError if ONNX cannot take it."""
        notify(f"{part.name}: exporting to ONNX")
        try:
            model = _export(part)
        except Exception as error:  # torch raises all kinds, on many lines
            raise ValueError(f"ONNX cannot take the {part.name}: {one_line(error, 300)}") from error
        if precision in ("int8", "int8-conv"):
            notify(f"{part.name}: quantising")
            if precision == "int8-conv" and part.name == UNET:  # a decoder's rounding would be seen
                _write_pointwise_as_products(model.graph)
            model = _quantized(model)
        if precision != "fp32":
            _store_in_half(model)
        file, graph = f"{part.name}.onnx", model.graph
        large = sum(len(tensor.raw_data) for tensor in graph.initializer) > LARGEST_FILE
        onnx.save_model(model, str(folder / file), save_as_external_data=large, location=f"{part.name}.data")
        inputs, outputs = ([_port(value) for value in values] for values in (graph.input, graph.output))
        return Network(file=file, inputs=inputs, outputs=outputs)

    def load(self, network: Network, folder: Path) -> Runner:
        """The network in ONNX Runtime."""
        return open_network(network, folder, threads=torch.get_num_threads())


def _export(part: Part) -> onnx.ModelProto:
    """The graph of `part`, without what only debugging needs."""
    dims = {label: Dim.DYNAMIC for labels in part.axes.values() for label in labels.values()}
    shapes = tuple({axis: dims[label] for axis, label in part.axes.get(name, {}).items()} for name in part.inputs)
    # Two of everything: a size of 1 would be taken for a constant.
    example = tuple(torch.cat([tensor, tensor]) for tensor in part.inputs.values())
    with quiet(), torch.no_grad():
        program = torch.export.export(part.module, example, dynamic_shapes=shapes)
        converted = torch.onnx.export(
            program, input_names=list(part.inputs), output_names=list(part.outputs), opset_version=OPSET, verbose=False
        )
    assert converted is not None
    model: onnx.ModelProto = converted.model_proto
    for value in (*model.graph.input, *model.graph.output):
        for axis, label in part.axes.get(value.name, {}).items():
            value.type.tensor_type.shape.dim[axis].dim_param = label
    del model.graph.value_info[:]
    for item in (model, model.graph, *model.graph.node):
        del item.metadata_props[:]
    _simplify(model.graph)
    return model


def _simplify(graph: onnx.GraphProto) -> None:
    """Removes what costs time and changes nothing from `graph`.

    The exporter replaces NaN after every masked softmax, for rows without a visible token: there is none, as every text
    has one. And it multiplies by the reciprocal root in RMSNorm, which ONNX Runtime knows, and fuses, with a division.
    """
    made = {output: node for node in graph.node for output in node.output}
    unguarded = {}
    for node in graph.node:
        inputs = [made.get(name) for name in node.input]
        if node.op_type == "Where" and inputs[0] and inputs[0].op_type == "IsNaN":
            if inputs[0].input[0] == node.input[2]:
                unguarded[node.output[0]] = node.input[2]
        elif node.op_type == "Mul":
            for index, source in enumerate(inputs):
                if source and source.op_type == "Reciprocal":
                    operands = [node.input[1 - index], source.input[0]]
                    node.op_type = "Div"
                    node.input[:] = operands
                    break
    for node in graph.node:
        node.input[:] = [unguarded.get(name, name) for name in node.input]
    _drop_unused(graph)


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Removes nodes and constants whose results nothing reads."""
    used = {value.name for value in graph.output}
    nodes = []
    for node in reversed(graph.node):  # a node comes after those that it reads
        if used.intersection(node.output):
            used.update(node.input)
            nodes.append(node)
    constants = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(nodes))
    graph.initializer.extend(constants)


def _write_pointwise_as_products(graph: onnx.GraphProto) -> None:
    """Writes the 1x1 convolutions of `graph`, but the first and last, as the products of matrices that they are."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        weight = constants.get(node.input[1]) if node.op_type == "Conv" else None
        if weight is None or not _is_pointwise(node, weight):
            nodes.append(node)
            continue
        source, name, bias = node.input[0], node.output[0], node.input[2:]
        matrix = numpy_helper.to_array(weight)[:, :, 0, 0].T.copy()
        graph.initializer.append(numpy_helper.from_array(matrix, f"{name}.matrix"))
        nodes += [
            helper.make_node("Transpose", [source], [f"{name}.last"], f"{name}.last", perm=[0, 2, 3, 1]),  # B H W C
            helper.make_node("MatMul", [f"{name}.last", f"{name}.matrix"], [f"{name}.product"], f"{name}.product"),
        ]
        if bias:
            nodes.append(helper.make_node("Add", [f"{name}.product", *bias], [f"{name}.sum"], f"{name}.sum"))
        whole = f"{name}.sum" if bias else f"{name}.product"
        nodes.append(helper.make_node("Transpose", [whole], [name], name, perm=[0, 3, 1, 2]))
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unused(graph)


def _is_pointwise(convolution: onnx.NodeProto, weight: TensorProto) -> bool:
    """Whether a convolution mixes all channels of each position by itself, and may be rounded."""
    settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in convolution.attribute}
    plain = settings.get("group", 1) == 1 and not any(settings.get("pads", ()))
    single = set(settings.get("strides", (1,))) == {1} and list(weight.dims[2:]) == [1, 1]
    return plain and single and not set(EXACT_LAYERS).intersection(weight.name.split("."))


def _quantized(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with the constant matrices of its products in 8 bits, a scale for each output channel.

    Those that multiply an input itself stay: text states have outliers, and all of an input shares one 8-bit grid.
    """
    given = {value.name for value in model.graph.input}
    first = [node.name for node in model.graph.node if node.op_type == "MatMul" and node.input[0] in given]
    with TemporaryDirectory() as folder, quiet():  # it gives advice to the root logger
        path = Path(folder) / "int8.onnx"
        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=first,
            use_external_data_format=True,  # for weights beyond what protobuf takes
        )
        return onnx.load_model(path)


def _store_in_half(model: onnx.ModelProto) -> None:
    """Stores those fp32 tensors of `model` in fp16 that it holds exactly, each with a cast to fp32 before its use."""
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < FEWEST:
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), values):
            continue
        name, stored = tensor.name, f"{tensor.name}.fp16"
        tensor.CopyFrom(numpy_helper.from_array(half, stored))
        casts.append(helper.make_node("Cast", [stored], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _port(value: onnx.ValueInfoProto) -> Port:
    """An input or output of a graph, as a bundle describes it."""
    tensor = value.type.tensor_type
    shape = [dim.dim_value or dim.dim_param for dim in tensor.shape.dim]
    return Port(name=value.name, dtype=DTYPES[tensor.elem_type], shape=shape)
