"""Shapes of what a node makes: those that onnx infers from its operands, and of what it infers nothing for, ours."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import onnx
import onnx_ir as ir

from surgery.arrays import Array
from surgery.graph.control import captured, control_types
from surgery.graph.operands import operands

_AS_FIRST = frozenset(
    ["MeanVarianceNormalization", "GroupNormalization", "LayerNormalization", "RMSNormalization", "HardSwish", "Mish",
     "Swish", "Celu", "Elu", "Selu", "Gelu", "PRelu", "ThresholdedRelu", "Softplus", "Softsign", "LeakyRelu",
     "HardSigmoid", "Shrink", "Clip", "Softmax", "LogSoftmax"]
)  # fmt: skip
_BROADCAST = frozenset(["GreaterOrEqual", "LessOrEqual"])
_CONTROL = frozenset(["If", "Loop", "Scan"])
_SCALING = frozenset(["Resize", "Upsample"])
"""Operators whose shapes depend on several fractions."""
_PLAIN = frozenset([ir.AttributeType.INT, ir.AttributeType.INTS, ir.AttributeType.STRING])


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


_Inferred = tuple[tuple[int, ...] | None, int | None]
_Attribute = bytes | tuple[str, ir.AttributeType, int | str | tuple[int, ...]]
_Numbers = tuple[np.dtype[Any], tuple[int, ...], bytes]


class _Operand(NamedTuple):
    """What a shape may depend on. numbers: their type, shape and bytes, where they are few."""

    dtype: int
    shape: tuple[int, ...]
    numbers: _Numbers | None


def infer_outputs(facts: Known, node: ir.Node) -> list[_Inferred]:
    """The shape and the element type of each output; None for what cannot be inferred."""
    try:
        inferred = _inferred(facts, node)
    except Exception:  # onnx raises its own C++ exception types; a declared shape is the second source
        inferred = _nothing(node)
    return [(_like_operands(facts, node) if shape is None else shape, dtype) for shape, dtype in inferred]


def _inferred(facts: Known, node: ir.Node) -> tuple[_Inferred, ...]:
    outer = captured(node)
    if any(value is not None and facts.shapes.get(value) is None for value in [*node.inputs, *outer]):
        return _nothing(node)
    if outer or node.op_type in _CONTROL:
        return _of_branches(facts, node, outer)
    scaling = node.op_type in _SCALING
    return _of_operator(
        node.op_type,
        node.domain,
        tuple(facts.versions.items()),
        tuple(map(_attribute, node.attributes.values())),
        tuple(None if value is None else _operand(facts, value, scaling) for value in node.inputs),
        tuple(bool(value.name) for value in node.outputs),
    )


def _attribute(attribute: ir.Attr) -> _Attribute:
    """Whole numbers and words, which most are, as they are; others serialised."""
    value, serde = attribute.value, ir.serde
    if attribute.is_ref() or attribute.type not in _PLAIN:
        serialise = serde.serialize_reference_attribute if attribute.is_ref() else serde.serialize_attribute
        serialised: bytes = serialise(attribute).SerializeToString()
        return serialised
    return attribute.name, attribute.type, tuple(value) if attribute.type == ir.AttributeType.INTS else value


def _proto(attribute: _Attribute) -> onnx.AttributeProto:
    plain = not isinstance(attribute, bytes)
    proto: onnx.AttributeProto = (
        ir.serde.serialize_attribute(ir.Attr(*attribute))
        if plain
        else onnx.AttributeProto.FromString(attribute)
    )
    return proto


def _nothing(node: ir.Node) -> tuple[_Inferred, ...]:
    return ((None, None),) * len(node.outputs)


def _operand(facts: Known, value: ir.Value, fractions: bool) -> _Operand:
    """What a shape may depend on. fractions: whether several of them may be more than weights, which are not read."""
    dtype, shape = facts.dtype(value), facts.shapes[value]
    assert shape is not None
    if ir.DataType(dtype).is_floating_point() and math.prod(shape) != 1 and not fractions:
        return _Operand(dtype, shape, None)
    array = facts.small(value)
    if array is None or array.dtype.hasobject:  # no shape depends on strings
        return _Operand(dtype, shape, None)
    return _Operand(dtype, shape, (array.dtype, array.shape, array.tobytes()))


@functools.lru_cache(maxsize=4096)
def _of_operator(
    op_type: str,
    domain: str,
    versions: tuple[tuple[str, int], ...],
    attributes: tuple[_Attribute, ...],
    operands: tuple[_Operand | None, ...],
    named: tuple[bool, ...],
) -> tuple[_Inferred, ...]:
    """Of equal questions one answer: an edit asks of all nodes again, and layers are alike.

    Args:
      operands: None where one is left out. named: whether an output is asked for.
    """
    inputs = ["" if operand is None else f"in{k}" for k, operand in enumerate(operands)]
    outputs = [f"out{k}" if asked else "" for k, asked in enumerate(named)]
    proto = onnx.NodeProto(op_type=op_type, domain=domain, input=inputs, output=outputs)
    proto.attribute.extend(map(_proto, attributes))
    given = {name: operand for name, operand in zip(inputs, operands, strict=True) if operand is not None}
    types = {name: _type(operand) for name, operand in given.items()}
    data = {name: _tensor(operand.numbers) for name, operand in given.items() if operand.numbers is not None}
    schema = onnx.defs.get_schema(op_type, dict(versions).get(domain, 1), domain)
    opsets = _opsets(dict(versions))
    found = onnx.shape_inference.infer_node_outputs(schema, proto, types, data, opset_imports=opsets)
    return tuple(_as_inferred(found.get(name)) for name in outputs)


def _of_branches(facts: Known, node: ir.Node, outer: Sequence[ir.Value]) -> tuple[_Inferred, ...]:
    """Of a node with graphs of its own, which read values from outside."""
    values = [value for value in [*node.inputs, *outer] if value is not None]
    types = {value.name or "": _type(_operand(facts, value, fractions=False)) for value in values}
    opsets = _opsets(facts.versions)
    if node.op_type in _CONTROL:
        found = control_types(node, types, [value.name or "" for value in outer], opsets)
    else:
        schema = onnx.defs.get_schema(node.op_type, facts.versions.get(node.domain, 1), node.domain)
        proto = ir.serde.serialize_node(node)
        found = onnx.shape_inference.infer_node_outputs(schema, proto, types, opset_imports=opsets)
    return tuple(_as_inferred(found.get(value.name or "")) for value in node.outputs)


def _type(operand: _Operand) -> onnx.TypeProto:
    return onnx.helper.make_tensor_type_proto(operand.dtype, operand.shape)


def _tensor(numbers: _Numbers) -> onnx.TensorProto:
    dtype, shape, data = numbers
    return onnx.numpy_helper.from_array(np.frombuffer(data, dtype).reshape(shape))


def _opsets(versions: Mapping[str, int]) -> list[onnx.OperatorSetIdProto]:
    return [onnx.helper.make_opsetid(domain, version) for domain, version in versions.items()]


def _as_inferred(proto: onnx.TypeProto | None) -> _Inferred:
    return _concrete(proto), _element_type(proto)


def _like_operands(facts: Known, node: ir.Node) -> tuple[int, ...] | None:
    """The shape of an operator for which onnx infers nothing node by node.

    It defines some as functions; and in a Concat before version 11 it has no place for negative axes.
    """
    shapes = [facts.shapes.get(value) for value in operands(node)]
    if node.domain or not shapes or None in shapes:
        return None
    if node.op_type in _AS_FIRST:
        return shapes[0]
    if node.op_type == "Concat":
        return _joined([s for s in shapes if s is not None], node.attributes.get_int("axis", 0))
    return np.broadcast_shapes(*(s for s in shapes if s is not None)) if node.op_type in _BROADCAST else None


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
