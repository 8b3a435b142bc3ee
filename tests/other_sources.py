"""The same network as other programs write it: each function takes a model apart and puts it together differently."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import onnxscript.optimizer
from onnx import AttributeProto, TensorProto, helper, numpy_helper

Change = Callable[[onnx.ModelProto], onnx.ModelProto]

NARROW = {np.dtype(np.float16): TensorProto.FLOAT16, np.dtype(np.float64): TensorProto.DOUBLE}


def _runtime(model: onnx.ModelProto, level: ort.GraphOptimizationLevel) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        options.graph_optimization_level = level
        options.log_severity_level = 3
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


def runtime_basic(model: onnx.ModelProto) -> onnx.ModelProto:
    """onnxruntime's own graph after its basic optimisations, as it saves it."""
    return _runtime(model, ort.GraphOptimizationLevel.ORT_ENABLE_BASIC)


def runtime_extended(model: onnx.ModelProto) -> onnx.ModelProto:
    """After its extended ones: operators of its own domain."""
    return _runtime(model, ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED)


def optimised(model: onnx.ModelProto) -> onnx.ModelProto:
    """onnxscript's optimiser."""
    return onnxscript.optimizer.optimize(model)


def old_style(model: onnx.ModelProto) -> onnx.ModelProto:
    """IR version 3: every initializer is a graph input, too."""
    known = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if tensor.name not in known:
            model.graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, tuple(tensor.dims))
            )
    model.ir_version = 3 if model.opset_import[0].version < 9 else model.ir_version
    return model


def constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Constant nodes in place of initializers."""
    nodes = [
        helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in model.graph.initializer
    ]
    del model.graph.initializer[:]
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])
    return model


def identities(model: onnx.ModelProto) -> onnx.ModelProto:
    """Two identities behind every weight and every result."""
    names = [tensor.name for tensor in model.graph.initializer]
    nodes = [node for name in names for node in _chain(name, f"{name}/same")]
    renamed = {name: f"{name}/same" for name in names}
    outputs = {value.name for value in model.graph.output}
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        nodes.append(node)
        for k, name in enumerate(node.output):
            if name and name not in outputs:
                node.output[k] = f"{name}/raw"
                nodes += _chain(f"{name}/raw", name)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.value_info[:]
    return model


def _chain(source: str, target: str) -> list[onnx.NodeProto]:
    middle = f"{target}/between"
    return [
        helper.make_node("Identity", [source], [middle], name=f"{target}/1"),
        helper.make_node("Identity", [middle], [target], name=f"{target}/2"),
    ]


def unused(model: onnx.ModelProto) -> onnx.ModelProto:
    """Tensors and nodes that nothing reads."""
    model.graph.initializer.append(numpy_helper.from_array(np.ones((3, 5), np.float32), "nobody.weight"))
    first = model.graph.initializer[0].name
    model.graph.node.append(helper.make_node("Identity", [first], ["nowhere"], name="nothing"))
    return model


def one_function(model: onnx.ModelProto) -> onnx.ModelProto:
    """The whole graph as a function in the file, called once."""
    names = [value.name for value in model.graph.input]
    weights = [tensor.name for tensor in model.graph.initializer]
    outputs = [value.name for value in model.graph.output]
    function = helper.make_function(
        "own", "Policy", [*names, *weights], outputs, list(model.graph.node), list(model.opset_import)
    )
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    del model.graph.node[:]
    del model.graph.value_info[:]
    model.graph.node.append(
        helper.make_node("Policy", [*names, *weights], outputs, name="policy", domain="own")
    )
    return model


def shuffled_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """No names of nodes, no shapes inside, numbers as names of tensors."""
    renamed = {tensor.name: str(k) for k, tensor in enumerate(model.graph.initializer)}
    for tensor in model.graph.initializer:
        tensor.name = renamed[tensor.name]
    for node in model.graph.node:
        node.name = ""
        del node.metadata_props[:]
        node.input[:] = [renamed.get(name, name) for name in node.input]
    del model.graph.value_info[:]
    return model


def unnamed_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """Symbolic sizes without names."""
    for value in [*model.graph.input, *model.graph.output]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_param"):
                dim.Clear()
    del model.graph.value_info[:]
    return model


def _retyped(model: onnx.ModelProto, dtype: np.dtype, code: int) -> onnx.ModelProto:
    """Every float32 in the file, in another precision."""

    def change(tensor: TensorProto) -> None:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(dtype)
            tensor.CopyFrom(ir.serde.serialize_tensor(ir.Tensor(array, name=tensor.name)))

    for tensor in model.graph.initializer:
        change(tensor)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                change(attribute.t)
            elif attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = code
    for value in [*model.graph.input, *model.graph.output]:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = code
    del model.graph.value_info[:]
    return model


def half(model: onnx.ModelProto) -> onnx.ModelProto:
    """float16 throughout."""
    return _retyped(model, np.dtype(np.float16), TensorProto.FLOAT16)


def bfloat(model: onnx.ModelProto) -> onnx.ModelProto:
    """bfloat16 throughout; onnxruntime has hardly any kernel for it."""
    return _retyped(model, np.dtype(ml_dtypes.bfloat16), TensorProto.BFLOAT16)


def double(model: onnx.ModelProto) -> onnx.ModelProto:
    """float64 throughout."""
    return _retyped(model, np.dtype(np.float64), TensorProto.DOUBLE)


def half_inside(model: onnx.ModelProto) -> onnx.ModelProto:
    """float16 weights that are cast to float32 where they are read."""
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        name, array = tensor.name, numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(array, f"{name}.half"))
        casts.append(
            helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT, name=f"{name}.cast")
        )
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*casts, *rest])
    return model


def integer_input(model: onnx.ModelProto) -> onnx.ModelProto:
    """Observations as uint8, cast and scaled in the graph."""
    value = next(v for v in model.graph.input if v.type.tensor_type.elem_type == TensorProto.FLOAT)
    name = value.name
    value.name, value.type.tensor_type.elem_type = f"{name}_bytes", TensorProto.UINT8
    model.graph.initializer.append(numpy_helper.from_array(np.float32(255), "bytes/scale"))
    nodes = [
        helper.make_node("Cast", [value.name], ["bytes/float"], to=TensorProto.FLOAT, name="bytes/cast"),
        helper.make_node("Div", ["bytes/float", "bytes/scale"], [name], name="bytes/divide"),
    ]
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])
    return model


SAME: tuple[Change, ...] = (
    runtime_basic, optimised, old_style, constants, identities, unused, one_function, shuffled_names, unnamed_batch,
)  # fmt: skip
"""Changes that keep the function, its inputs and its precision."""

PRECISIONS: tuple[tuple[Change, float], ...] = (
    (half, 2e-2),
    (bfloat, 2e-1),
    (double, 1e-6),
    (half_inside, 2e-2),
)
"""Changes of precision, and how far the answers may move by them."""
