"""Operators that look units up at run time: the axis that is looked into keeps its size."""

from __future__ import annotations

import onnx_ir as ir

from surgery.graph.atoms import Axis, size_of
from surgery.graph.labels import full_label
from surgery.graph.operands import data_of, operands
from surgery.graph.rules.selection import picked
from surgery.graph.rules.table import Table
from surgery.graph.trace import Trace

RULES = Table()


def _together(t: Trace, node: ir.Node, columns: list[tuple[ir.Value, Axis]]) -> Axis:
    """Axes that run side by side; one that is shorter than the others only touches their first units.

    Nothing passes back to indices: index 0 is no zero.
    """
    if len({size_of(axis) for _, axis in columns}) == 1 and any(axis for _, axis in columns):
        return t.merge(node, columns, passes=0)
    for _, axis in columns:
        t.freeze(node, axis, "opaque", "indexed in part")
    return columns[-1][1]


@RULES("GatherElements", axes="indexed axis: frozen; other axes: pointwise")
def gather_elements(t: Trace, node: ir.Node) -> None:
    """out[i, j] = data[index[i, j], j] for axis 0."""
    data, indices = operands(node)
    rows, chosen = t.axes(data), t.axes(indices)
    at = node.attributes.get_int("axis", 0) % len(rows)
    t.freeze(node, rows[at], "opaque", "indexed at run time")
    t.use("weight", data, rows)
    out = []
    for k, (axis, index) in enumerate(zip(rows, chosen, strict=True)):
        columns = [(indices, index)] if k == at else [(data, axis), (indices, index)]
        out.append(_together(t, node, columns))
    t.put(node.outputs[0], out)


@RULES("ScatterElements", "Scatter", axes="indexed axis: frozen; other axes: pointwise")
def scatter_elements(t: Trace, node: ir.Node) -> None:
    """A copy of the data in which indexed elements are replaced or accumulated."""
    data, indices, updates = operands(node)
    rows = t.axes(data)
    at = node.attributes.get_int("axis", 0) % len(rows)
    for axis in (rows[at], t.axes(indices)[at], t.axes(updates)[at]):
        t.freeze(node, axis, "opaque", "indexed at run time")
    out = []
    for k, axis in enumerate(rows):
        columns = [(indices, t.axes(indices)[k]), (updates, t.axes(updates)[k]), (data, axis)]
        out.append(axis if k == at else _together(t, node, columns))
    t.put(node.outputs[0], out)


@RULES(
    "GatherND",
    axes="first axis with constant indices: ordered sum; axes indexed otherwise: frozen; batch: pointwise; "
    "axes after them: pointwise, zero and scale pass back",
)
def gather_nd(t: Trace, node: ir.Node) -> None:
    """Slices of the data, named by index tuples in the last axis of the indices."""
    data, indices = operands(node)
    batch, (*listing, depth) = node.attributes.get_int("batch_dims", 0), t.shape(indices)
    numbers = t.facts.ints(indices)
    # x[:, [0, 1, 4]] comes as this from PyTorch
    if numbers is not None and not batch and len(listing) == depth == 1:
        t.put(node.outputs[0], picked(t, node, 0, numbers, listing))
        return
    rows, chosen = t.axes(data), t.axes(indices)
    for axis in [*rows[batch : batch + depth], chosen[-1]]:
        t.freeze(node, axis, "opaque", "indexed at run time")
    t.use("weight", data, rows)
    shared = [_together(t, node, [(data, rows[k]), (indices, chosen[k])]) for k in range(batch)]
    rest = [t.merge(node, [(data, axis)]) for axis in rows[batch + depth :]]
    listed = [_together(t, node, [(indices, axis)]) for axis in chosen[batch:-1]]
    t.put(node.outputs[0], [*shared, *listed, *rest])


@RULES("ScatterND", axes="indexed axes: frozen; axes after them: pointwise")
def scatter_nd(t: Trace, node: ir.Node) -> None:
    """A copy of the data in which slices, named by index tuples, are replaced or accumulated."""
    data, indices, updates = operands(node)
    rows, depth = t.axes(data), t.shape(indices)[-1]
    new = t.axes(updates)
    listed = len(new) - (len(rows) - depth)
    for axis in [*rows[:depth], *t.axes(indices), *new[:listed]]:
        t.freeze(node, axis, "opaque", "indexed at run time")
    tails = new[listed:]
    rest = [
        _together(t, node, [(updates, other), (data, axis)])
        for axis, other in zip(rows[depth:], tails, strict=True)
    ]
    t.put(node.outputs[0], [*rows[:depth], *rest])


@RULES("OneHot", axes="classes: frozen; other axes: pointwise")
def one_hot(t: Trace, node: ir.Node) -> None:
    """A new axis with one position per class."""
    indices = data_of(node)
    rows, shape = t.axes(indices), t.shape(node.outputs[0])
    at = node.attributes.get_int("axis", -1) % len(shape)
    classes = t.fixed(shape[at], "literal", f"the classes of {full_label(node)}")
    listed = [_together(t, node, [(indices, axis)]) for axis in rows]
    t.put(node.outputs[0], [*listed[:at], classes, *listed[at:]])


@RULES("Trilu", axes="last two axes: order statistic; other axes: pointwise, zero and scale pass back")
def trilu(t: Trace, node: ir.Node) -> None:
    """A triangle of the last two axes."""
    x = data_of(node)
    rows = t.axes(x)
    for axis in rows[-2:]:
        t.mix(node, "order", x, axis)
    t.put(node.outputs[0], rows)
