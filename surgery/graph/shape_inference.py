"""Shapes of what a node makes: those that onnx infers from its operands, and of what it infers nothing for, ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx
import onnx_ir as ir

from surgery.graph.control import captured, control_types

Array = np.ndarray[Any, np.dtype[Any]]
_AS_FIRST = frozenset(
    ["MeanVarianceNormalization", "GroupNormalization", "LayerNormalization", "RMSNormalization", "HardSwish", "Mish",
     "Swish", "Celu", "Elu", "Selu", "Gelu", "PRelu", "ThresholdedRelu", "Softplus", "Softsign", "LeakyRelu",
     "HardSigmoid", "Shrink", "Clip", "Softmax", "LogSoftmax"]
)  # fmt: skip
_BROADCAST = frozenset(["GreaterOrEqual", "LessOrEqual"])


class Known(Protocol):
    """What is known of values before a node.

    Attributes:
      shapes: of values, None where they cannot be told. versions: of operator sets, by their domains.
    """

    shapes: dict[ir.Value, tuple[int, ...] | None]
    versions: Mapping[str, int]

    def dtype(self, value: ir.Value) -> int:
        """ONNX's number of an element type."""

    def small(self, value: ir.Value) -> Array | None:
        """The numbers of a value that a shape may depend on."""


def infer_outputs(facts: Known, node: ir.Node) -> list[tuple[tuple[int, ...] | None, int | None]]:
    """The shape and the element type of each output; None for what cannot be inferred."""
    try:
        inferred = _infer_types(facts, node)
    except Exception:  # onnx raises its own C++ exception types; a declared shape is the second source
        inferred = {}
    protos = [inferred.get(value.name or "") for value in node.outputs]
    shapes = [_concrete(proto) for proto in protos]
    return [
        (_like_operands(facts, node) if shape is None else shape, _element_type(proto))
        for shape, proto in zip(shapes, protos, strict=True)
    ]


def _like_operands(facts: Known, node: ir.Node) -> tuple[int, ...] | None:
    """The shape of an operator for which onnx infers nothing node by node.

    It defines some as functions; and in a Concat before version 11 it has no place for negative axes.
    """
    shapes = [facts.shapes.get(value) for value in node.inputs if value is not None]
    if node.domain not in ("", "ai.onnx") or not shapes or None in shapes:
        return None
    if node.op_type in _AS_FIRST:
        return shapes[0]
    if node.op_type == "Concat":
        return _joined([s for s in shapes if s is not None], node.attributes.get_int("axis", 0))
    return np.broadcast_shapes(*(s for s in shapes if s is not None)) if node.op_type in _BROADCAST else None


def _infer_types(facts: Known, node: ir.Node) -> Mapping[str, onnx.TypeProto]:
    version = facts.versions.get(node.domain, 1)
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in facts.versions.items()]
    schema = onnx.defs.get_schema(node.op_type, version, node.domain)
    types, data = {}, {}
    outer = captured(node)
    for value in [*node.inputs, *outer]:
        if value is None:
            continue
        shape = facts.shapes.get(value)
        if shape is None:
            return {}
        dtype = facts.dtype(value)
        types[value.name or ""] = onnx.helper.make_tensor_type_proto(dtype, shape)
        array = facts.small(value)
        if array is not None:
            data[value.name or ""] = onnx.numpy_helper.from_array(array, value.name)
    if node.op_type in ("If", "Loop", "Scan"):
        return control_types(node, types, [value.name or "" for value in outer], opsets)
    proto = ir.serde.serialize_node(node)
    return onnx.shape_inference.infer_node_outputs(schema, proto, types, data, opset_imports=opsets)


def _joined(shapes: Sequence[tuple[int, ...]], axis: int) -> tuple[int, ...] | None:
    """The shape of a concatenation; None if the operands do not fit."""
    if len({len(shape) for shape in shapes}) > 1 or not -len(shapes[0]) <= axis < len(shapes[0]):
        return None
    at = axis % len(shapes[0])
    if len({(*shape[:at], *shape[at + 1 :]) for shape in shapes}) > 1:
        return None
    return (*shapes[0][:at], sum(shape[at] for shape in shapes), *shapes[0][at + 1 :])


def _concrete(proto: onnx.TypeProto | None) -> tuple[int, ...] | None:
    if proto is None or not proto.HasField("tensor_type") or not proto.tensor_type.HasField("shape"):
        return None
    dims = proto.tensor_type.shape.dim
    return tuple(int(d.dim_value) for d in dims) if all(d.HasField("dim_value") for d in dims) else None


def _element_type(proto: onnx.TypeProto | None) -> int | None:
    return proto.tensor_type.elem_type if proto is not None and proto.HasField("tensor_type") else None
