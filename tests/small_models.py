"""Small ONNX models for tests of files: one per feature of the format that has to survive."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper


def array(*shape: int, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    """Random numbers of a shape."""
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def wrap(
    nodes: list[NodeProto], initializers: Mapping[str, np.ndarray] | list[TensorProto], **fields: object
) -> ModelProto:
    """A model of the given nodes from `x` (batch, 4) to `y`."""
    tensors = (
        initializers
        if isinstance(initializers, list)
        else [numpy_helper.from_array(value, name) for name, value in initializers.items()]
    )
    graph = helper.make_graph(
        nodes,
        "policy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", None])],
        tensors,
    )
    opsets = [helper.make_opsetid("", 20), *fields.pop("opsets", [])]  # type: ignore[misc]
    return helper.make_model(graph, ir_version=10, opset_imports=opsets, **fields)


def mlp(*, scale: float = 1.0) -> ModelProto:
    """Two dense layers with PyTorch's names."""
    nodes = [
        helper.make_node("Gemm", ["x", "net.0.weight", "net.0.bias"], ["h"], transB=1, name="first"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "net.2.weight", "net.2.bias"], ["y"], transB=1),
    ]
    sizes = {"net.0.weight": (8, 4), "net.0.bias": (8,), "net.2.weight": (2, 8), "net.2.bias": (2,)}
    weights = {name: scale * array(*size, seed=n) for n, (name, size) in enumerate(sizes.items())}
    return wrap(nodes, {name: value.astype("f4") for name, value in weights.items()})


def described() -> ModelProto:
    """Doc strings, metadata and value information wherever ONNX has room for them."""
    model = mlp()
    model.doc_string, model.producer_name, model.domain, model.model_version = "about", "someone", "org", 7
    helper.set_model_props(model, {"author": "me", "empty": ""})
    model.graph.doc_string = "the graph"
    model.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, ["batch", 8]))
    model.graph.node[0].doc_string = "stack trace"
    entry = model.graph.node[0].metadata_props.add()
    entry.key, entry.value = "scope", "net.0"
    model.graph.initializer[0].doc_string = "weights"
    model.graph.input[0].doc_string = "an observation"
    return model


def branching() -> ModelProto:
    """An If whose branches have initializers of the same name."""
    branches = {}
    for number, side in enumerate(("then", "else")):
        branches[f"{side}_branch"] = helper.make_graph(
            [helper.make_node("Add", ["x", "shift"], [f"{side}_y"])],
            side,
            [],
            [helper.make_tensor_value_info(f"{side}_y", TensorProto.FLOAT, ["batch", 4])],
            [numpy_helper.from_array(array(4, seed=number), "shift")],
        )
    flag = numpy_helper.from_array(np.array(True), "flag")
    return wrap([helper.make_node("If", ["flag"], ["y"], **branches)], [flag])


def calling() -> ModelProto:
    """A model-local function with a constant and a reference attribute."""
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(array(4), "c"))
    scaled = helper.make_node("LeakyRelu", ["a"], ["s"])
    scaled.attribute.add(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    function = helper.make_function(
        "own",
        "Shift",
        ["a"],
        ["b"],
        [constant, scaled, helper.make_node("Add", ["s", "c"], ["b"])],
        [helper.make_opsetid("", 20)],
        attributes=["slope"],
    )
    node = helper.make_node("Shift", ["x"], ["y"], domain="own", slope=0.25)
    return wrap([node], {}, functions=[function], opsets=[helper.make_opsetid("own", 1)])


def odd_tensors() -> ModelProto:
    """Empty axes, a scalar, strings, small integers, typed fields, and element types below a byte."""
    tensors = [
        numpy_helper.from_array(np.zeros((0, 3), "f4"), "empty"),
        numpy_helper.from_array(np.array(1.5, "f8"), "scalar"),
        numpy_helper.from_array(np.array([1, -1], "i8"), "shape"),
        helper.make_tensor("text", TensorProto.STRING, [2], [b"left", b"right"]),
        helper.make_tensor("typed", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0]),
        helper.make_tensor("half", TensorProto.FLOAT16, [2], [1.0, 0.5]),
        helper.make_tensor("brain", TensorProto.BFLOAT16, [3], [1.0, 2.0, 0.5]),
        helper.make_tensor("eight", TensorProto.FLOAT8E4M3FN, [3], [1.0, 2.0, 0.5]),
        helper.make_tensor("four", TensorProto.INT4, [3], [1, -2, 3]),
        helper.make_tensor("flags", TensorProto.BOOL, [2], [True, False]),
        helper.make_tensor("complex", TensorProto.COMPLEX64, [2], [1 + 2j, 3 - 4j]),
        numpy_helper.from_array(array(40, 30), "large"),
        numpy_helper.from_array(np.arange(1000, dtype="i8"), "indices"),
    ]
    return wrap([helper.make_node("Identity", ["x"], ["y"])], tensors)


MODELS: Mapping[str, Callable[[], ModelProto]] = {
    "mlp": mlp,
    "described": described,
    "branching": branching,
    "calling": calling,
    "odd tensors": odd_tensors,
}


def write(model: ModelProto, path: Path, *, external: str | None = None) -> Path:
    """Save with the onnx package, all weights inside or all in one file beside the model."""
    options = {"save_as_external_data": True, "location": external, "size_threshold": 0} if external else {}
    onnx.save(model, path, **options)
    return path
