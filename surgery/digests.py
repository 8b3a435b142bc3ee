"""One number for what a model computes: its graph and tensors, and nothing that is only said about them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
import onnx_ir as ir

from surgery.tensors import digest


def model_digest(model: ir.Model) -> str:
    """SHA-256 of a model's graph, functions, operator sets and tensors, streamed.

    The same for weights inside the file or beside it, and whatever the doc strings, stack traces, node names,
    intermediate shapes, producer, IR version and metadata are.

    Returns:
      64 hexadecimal digits.
    """
    state = hashlib.sha256()
    for piece in _model(model):
        data = piece.encode()
        state.update(len(data).to_bytes(8, "little") + data)
    return state.hexdigest()


def _model(model: ir.Model) -> Iterator[str]:
    yield from _opsets(model.graph.opset_imports)
    yield from _graph(model.graph)
    for key in sorted(model.functions):
        function = model.functions[key]
        yield f"function {key}"
        yield from _opsets(function.opset_imports)
        yield from _attributes(function.attributes.values())
        yield from _values("input", function.inputs)
        yield from _values("output", function.outputs)
        yield from _nodes(function)


def _opsets(opsets: dict[str, int]) -> Iterator[str]:
    for domain in sorted(opsets):
        yield f"opset {domain} {opsets[domain]}"


def _graph(graph: ir.Graph) -> Iterator[str]:
    yield "graph"
    yield from _values("input", graph.inputs)
    yield from _values("output", graph.outputs)
    for name in sorted(graph.initializers):
        tensor = graph.initializers[name].const_value
        yield f"initializer {name}"
        yield "" if tensor is None else digest(tensor)
    yield from _nodes(graph)
    yield "end"


def _values(side: str, values: Iterable[ir.Value]) -> Iterator[str]:
    for value in values:
        shape = None if value.shape is None else [str(size) for size in value.shape]
        yield f"{side} {value.name} {value.type!r} {shape}"


def _nodes(nodes: Iterable[ir.Node]) -> Iterator[str]:
    for node in nodes:
        yield f"node {node.domain} {node.op_type} {node.overload}"
        yield repr([None if value is None else value.name for value in node.inputs])
        yield repr([value.name for value in node.outputs])
        yield from _attributes(node.attributes.values())


def _attributes(attributes: Iterable[ir.Attr]) -> Iterator[str]:
    for attribute in sorted(attributes, key=lambda attribute: attribute.name):
        yield f"attribute {attribute.name} {attribute.type.name} {attribute.ref_attr_name}"
        if not attribute.is_ref() and attribute.value is not None:
            yield from _attribute_value(attribute)


def _attribute_value(attribute: ir.Attr) -> Iterator[str]:
    kind = attribute.type
    if kind == ir.AttributeType.TENSOR:
        yield digest(attribute.as_tensor())
    elif kind == ir.AttributeType.TENSORS:
        yield from (digest(tensor) for tensor in attribute.as_tensors())
    elif kind == ir.AttributeType.GRAPH:
        yield from _graph(attribute.as_graph())
    elif kind == ir.AttributeType.GRAPHS:
        for graph in attribute.as_graphs():
            yield from _graph(graph)
    elif kind in (ir.AttributeType.FLOAT, ir.AttributeType.FLOATS):
        # A file keeps single precision; a graph made in memory may hold more.
        values = [attribute.as_float()] if kind == ir.AttributeType.FLOAT else list(attribute.as_floats())
        yield np.asarray(values, "<f4").tobytes().hex()
    elif kind in (ir.AttributeType.INTS, ir.AttributeType.STRINGS):
        yield repr(list(attribute.value))
    else:
        yield repr(attribute.value)
