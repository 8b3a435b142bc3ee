"""Operators that mix units along an axis."""

from __future__ import annotations

import onnx_ir as ir

from surgery.graph.atoms import UNIT, Axis
from surgery.graph.labels import full_label
from surgery.graph.operands import data_of
from surgery.graph.records import Kind
from surgery.graph.rules.table import Table
from surgery.graph.trace import Trace

RULES = Table()

_KINDS: dict[str, Kind] = {
    "ReduceSum": "sum",
    "ReduceMean": "mean",
    "ReduceMax": "extreme",
    "ReduceMin": "extreme",
    "ReduceL1": "norm",
    "ReduceL2": "norm",
    "ReduceSumSquare": "norm",
}
_HOMOGENEOUS = {"ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2"}


@RULES("ReduceSum", axes="reduced axes: sum; other axes: pointwise, zero and scale pass back")
@RULES("ReduceMean", axes="reduced axes: mean; other axes: pointwise, zero and scale pass back")
@RULES(
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
    axes="reduced axes: norm; other axes: pointwise",
)
@RULES(
    "ReduceProd",
    "ReduceLogSum",
    "ReduceLogSumExp",
    axes="reduced axes: order statistic; other axes: pointwise",
)
@RULES(
    "ReduceMax", "ReduceMin", axes="reduced axes: extreme; other axes: pointwise, zero and scale pass back"
)
def reduce(t: Trace, node: ir.Node) -> None:
    """A reduction over named axes (all of them where none are named)."""
    x = data_of(node)
    data = t.axes(x)
    named = t.numbers(node, 1, "axes")
    if not named and bool(node.attributes.get_int("noop_with_empty_axes", 0)):
        t.put(node.outputs[0], data)
        return
    over = {k % len(data) for k in named} if named else set(range(len(data)))
    keep = bool(node.attributes.get_int("keepdims", 1))
    out: list[Axis] = []
    for k, axis in enumerate(data):
        if k in over:
            t.mix(node, _KINDS.get(node.op_type, "order"), x, axis)
            out += [UNIT] if keep else []
        elif node.op_type in ("ReduceSum", "ReduceMean"):
            out.append(axis)
        elif node.op_type in _HOMOGENEOUS:
            out.append(t.merge(node, [(x, axis)], linear=False))
        else:
            out.append(t.merge(node, [(x, axis)], passes=0))
    t.put(node.outputs[0], out)


@RULES("Softmax", "LogSoftmax", "Hardmax", axes="normalised axis: order statistic; other axes: pointwise")
def softmax(t: Trace, node: ir.Node) -> None:
    """Normalised over one axis (before opset 13 over all axes from the named one on)."""
    x = data_of(node)
    data = t.axes(x)
    old = t.facts.versions.get("", 13) < 13
    axis = node.attributes.get_int("axis", 1 if old else -1) % max(len(data), 1)
    mixed = range(axis, len(data)) if old else [axis]
    for k in mixed:
        t.mix(node, "order", x, data[k])
    t.put(node.outputs[0], t.broadcast(node, [x], passes=0))


@RULES("ArgMax", "ArgMin", axes="reduced axes: order statistic; other axes: pointwise")
def arg(t: Trace, node: ir.Node) -> None:
    """The index of an extreme unit."""
    x = data_of(node)
    data = t.axes(x)
    axis = node.attributes.get_int("axis", 0) % len(data)
    t.mix(node, "order", x, data[axis])
    rest = t.broadcast(node, [x], passes=0)
    keep = [UNIT] if node.attributes.get_int("keepdims", 1) else []
    t.put(node.outputs[0], [*rest[:axis], *keep, *rest[axis + 1 :]])


@RULES("TopK", axes="sorted axis: order statistic; other axes: pointwise")
def top_k(t: Trace, node: ir.Node) -> None:
    """The largest units of one axis."""
    x = data_of(node)
    data = t.axes(x)
    axis = node.attributes.get_int("axis", -1) % len(data)
    t.mix(node, "order", x, data[axis])
    rest = t.broadcast(node, [x], passes=0)
    for value in node.outputs:
        count = t.shape(value)[axis]
        rest[axis] = t.fixed(count, "literal", f"the count of {full_label(node)}")
        t.put(value, rest)


@RULES("CumSum", axes="summed axis: order statistic; other axes: pointwise, zero and scale pass back")
def cumsum(t: Trace, node: ir.Node) -> None:
    """Running sums along one axis."""
    x = data_of(node)
    data = t.axes(x)
    axis = (t.numbers(node, 1) or [0])[0] % len(data)
    t.mix(node, "order", x, data[axis])
    t.put(node.outputs[0], data)
