"""If, Loop and Scan: what their subgraphs read, and the shapes of what comes out.

ONNX lets the state of a loop change its shape from step to step. Here it is shown that it does not: if the body, given
a state of the initial shape, returns one of the same shape, then by induction every state has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
import onnx_ir as ir

Types = Mapping[str, onnx.TypeProto]


def control_types(
    node: ir.Node, types: Types, captured: Sequence[str], opsets: Sequence[onnx.OperatorSetIdProto]
) -> Types:
    """The types of a node's outputs, as far as they follow.

    Args:
      node: an If, Loop or Scan.
      types: of its inputs and of the outer values that its subgraphs read, with concrete shapes.
      captured: names of those outer values.
      opsets: of the model.
    """
    proto = ir.serde.serialize_node(node)
    outer = {name: types[name] for name in captured}
    if node.op_type == "If":
        branches = [_results(a.g, {}, outer, opsets) for a in proto.attribute if a.name.endswith("_branch")]
        return {
            name: first
            for name, first, second in zip(proto.output, *branches, strict=True)
            if first is not None and first == second
        }
    scanning = _Scanning.of(proto)
    if scanning is None:
        return {}
    body = scanning.body
    given = scanning.given(types)
    inside = dict(zip([port.name for port in body.input], given, strict=True))
    results = _results(body, inside, outer, opsets)[scanning.skipped_outputs :]
    states = given[scanning.skipped_inputs : scanning.skipped_inputs + scanning.states]
    if any(after != before for after, before in zip(results, states, strict=False)):
        return {}
    rows = scanning.rows(types)
    collected = [_stacked(result, rows) for result in results[scanning.states :]]
    found = [*states, *collected]
    return {name: kind for name, kind in zip(proto.output, found, strict=True) if name and kind is not None}


def captured(node: ir.Node) -> list[ir.Value]:
    """Outer values that a node's subgraphs read (If, Loop, Scan)."""
    inner: list[ir.Value] = []
    for attribute in node.attributes.values():
        graphs = (
            [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH
            else list(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS
            else []
        )  # fmt: skip
        for graph in graphs:
            own = {*graph.inputs, *graph.initializers.values()}
            for inside in graph.all_nodes():
                own.update(inside.outputs)
            seen = [v for inside in graph.all_nodes() for v in inside.inputs] + list(graph.outputs)
            inner.extend(v for v in seen if v is not None and v not in own)
    return inner


class _Scanning:
    """What Loop and Scan have in common: states that go round, and results that are collected."""

    def __init__(self, proto: onnx.NodeProto, body: onnx.GraphProto, scanned: int) -> None:
        self.proto, self.body, self.scanned = proto, body, scanned
        self.loop = proto.op_type == "Loop"
        self.skipped_inputs, self.skipped_outputs = (2, 1) if self.loop else (0, 0)
        self.states = len(proto.input) - self.skipped_inputs - scanned

    @staticmethod
    def of(proto: onnx.NodeProto) -> _Scanning | None:
        """None where the results lie along other axes than the first, or the form is an old one."""
        plain = {"body", "num_scan_inputs"}
        attributes = {attribute.name: attribute for attribute in proto.attribute}
        if any(any(a.ints) for name, a in attributes.items() if name not in plain):
            return None
        scanned = attributes["num_scan_inputs"].i if "num_scan_inputs" in attributes else 0
        body = attributes["body"].g
        return _Scanning(proto, body, scanned) if len(body.input) == len(proto.input) else None

    def given(self, types: Types) -> list[onnx.TypeProto]:
        """Types of the body's inputs at the first step."""
        counters = [
            onnx.helper.make_tensor_type_proto(onnx.TensorProto.INT64, ()),
            onnx.helper.make_tensor_type_proto(onnx.TensorProto.BOOL, ()),
        ]
        operands = [types[name] for name in self.proto.input[self.skipped_inputs :]]
        split = len(operands) - self.scanned
        rows = [_row(kind) for kind in operands[split:]]
        return [*counters[: self.skipped_inputs], *operands[:split], *rows]

    def rows(self, types: Types) -> int | None:
        """Number of steps; a Loop may stop at any."""
        if not self.scanned:
            return None
        return int(types[self.proto.input[-1]].tensor_type.shape.dim[0].dim_value)


def _row(kind: onnx.TypeProto) -> onnx.TypeProto:
    shape = [dim.dim_value for dim in kind.tensor_type.shape.dim]
    return onnx.helper.make_tensor_type_proto(kind.tensor_type.elem_type, shape[1:])


def _stacked(kind: onnx.TypeProto | None, rows: int | None) -> onnx.TypeProto | None:
    if kind is None or rows is None:
        return None
    shape = [dim.dim_value for dim in kind.tensor_type.shape.dim]
    return onnx.helper.make_tensor_type_proto(kind.tensor_type.elem_type, [rows, *shape])


def _results(
    body: onnx.GraphProto, given: Types, outer: Types, opsets: Sequence[onnx.OperatorSetIdProto]
) -> list[onnx.TypeProto | None]:
    """Types of a subgraph's outputs; None where a dimension stays unknown."""
    graph = onnx.GraphProto()
    graph.CopyFrom(body)
    del graph.input[:]
    names = [*given, *outer]
    graph.input.extend(onnx.helper.make_value_info(name, {**outer, **given}[name]) for name in names)
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    model = onnx.helper.make_model(graph, opset_imports=list(opsets))
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph.output
    return [value.type if _concrete(value.type) else None for value in inferred]


def _concrete(kind: onnx.TypeProto) -> bool:
    tensor = kind.tensor_type
    return tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim)
