"""Recurrent operators: gates · hidden on one side, hidden on the other; old units never read new ones."""

from __future__ import annotations

import onnx_ir as ir

from surgery.graph.atoms import Axis
from surgery.graph.operands import data_of
from surgery.graph.records import Site
from surgery.graph.rules.table import Table
from surgery.graph.trace import Trace

RULES = Table()

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@RULES(
    "LSTM",
    "GRU",
    "RNN",
    axes="input, hidden to hidden: contraction; batch, hidden: pointwise; gates, directions, time: frozen",
)
def recurrent(t: Trace, node: ir.Node) -> None:
    """h' = f(W x + R h + b): W [D, gates·H, I], R [D, gates·H, H], B [D, 2·gates·H], states [D, B, H].

    With layout 1 the batch comes first: x [B, T, I], states [B, D, H], and the results alike.
    """
    x, w, r = node.inputs[0], node.inputs[1], node.inputs[2]
    assert x is not None and w is not None and r is not None
    gates = GATES[node.op_type]
    batch, time, way, each = (0, 1, 1, 0) if node.attributes.get_int("layout", 0) else (1, 0, 0, 1)
    data, weights, recurrence = t.axes(x), t.axes(w), t.axes(r)
    t.contract(node, (x, data[2]), (w, weights[2]))
    columns = [(w, _hidden(t, node, weights[1], gates)), (r, _hidden(t, node, recurrence[1], gates))]
    directions = [(w, weights[0]), (r, recurrence[0])]
    bias, peephole = _optional(node, 3), _optional(node, 7)
    for value, blocks in ((bias, 2 * gates), (peephole, 3)):
        if value is not None:
            columns.append((value, _hidden(t, node, t.axes(value)[1], blocks)))
            directions.append((value, t.axes(value)[0]))
            t.use("bias", value, t.axes(value))
    states = [state for state in (_optional(node, 5), _optional(node, 6)) if state is not None]
    for state in states:
        directions.append((state, t.axes(state)[way]))
        t.same(node, columns[0][1], t.axes(state)[2])
        t.same(node, data[batch], t.axes(state)[each])
    t.use("weight", w, weights)
    t.use("weight", r, recurrence)
    hidden = t.merge(node, columns, passes=0)
    t.sites.append(Site("contract", node, (None, 2), (hidden, recurrence[2]), (False, t.constant(r))))
    t.same(node, hidden, recurrence[2])
    t.literal(node, "hidden_size", lambda size: [size(hidden)])
    _put(t, node, data[time], data[batch], _directions(t, node, directions), hidden)


def _optional(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _hidden(t: Trace, node: ir.Node, axis: Axis, blocks: int) -> Axis:
    """The hidden units of an axis that holds several blocks of them."""
    if blocks == 1:
        return axis
    gate, hidden = t.split(node, axis, blocks)
    t.freeze(node, gate, "literal", "counted as gates")
    return hidden


def _directions(t: Trace, node: ir.Node, columns: list[tuple[ir.Value, Axis]]) -> Axis:
    for _, axis in columns:
        t.freeze(node, axis, "literal", "counted as directions")
    return t.merge(node, columns)


def _put(t: Trace, node: ir.Node, time: Axis, batch: Axis, directions: Axis, hidden: Axis) -> None:
    batch = t.merge(node, [(data_of(node), batch)], passes=0)
    t.freeze(node, time, "spatial", "stepped through")
    shapes = [[time, directions, batch, hidden], [directions, batch, hidden], [directions, batch, hidden]]
    if node.attributes.get_int("layout", 0):
        shapes = [[batch, time, directions, hidden], [batch, directions, hidden], [batch, directions, hidden]]
    for value, axes in zip(node.outputs, shapes, strict=False):
        if value.name:
            t.put(value, axes)
