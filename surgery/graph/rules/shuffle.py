"""Channel shuffles: parts of one size read as rows, transposed, and read as one axis again.

A shuffle of a product is a product in another order, and needs no rule of its own. Where a part of what was shuffled
goes into the next shuffle, the parts hold ever smaller fractions of the units, which are no products: there the units
of the parts are taken in turn, and halves of that are halves whatever its size.
"""

from __future__ import annotations

import onnx_ir as ir

from surgery.graph.atoms import Axis, Freeze, Link, Mismatch, factors, freeze, summands, weave
from surgery.graph.axes import cut, derive
from surgery.graph.labels import full_label, label
from surgery.graph.operands import data_of
from surgery.graph.trace import Trace

_THROUGH = frozenset(
    ["Relu", "Identity", "BatchNormalization", "Clip", "HardSwish", "Gelu", "Dropout", "Cast"]
)
_CUTS = frozenset(["Split", "Slice", "SplitToSequence"])


def parted(t: Trace, node: ir.Node) -> list[Axis] | None:
    """What a Reshape that begins a shuffle gives: [.., a + b, ..] -> [.., 2, n, ..]; None if it begins none."""
    rows = _rows(t, node)
    if rows is None:
        return None
    k, count, parts = rows
    data, value = t.axes(data_of(node)), node.outputs[0]
    group = t.fixed(count, "literal", f"the groups of the shuffle by node '{label(node)}'")
    t.apart[value] = parts
    return [*data[:k], group, parts[0], *data[k + 1 :]]


def joined(t: Trace, node: ir.Node) -> list[Axis] | None:
    """What the Reshape that ends a shuffle gives: [.., n, 2, ..] -> [.., a ⋈ b, ..]; None if it ends none."""
    turned = _maker(data_of(node))
    first = None if turned is None or turned.op_type != "Transpose" else _maker(data_of(turned))
    parts = None if first is None else t.apart.get(first.outputs[0])
    if turned is None or parts is None:
        return None
    data, shape = t.axes(data_of(node)), t.shape(node.outputs[0])
    order = [int(k) for k in turned.attributes["perm"].as_ints()]
    k = next(place for place, axis in enumerate(order) if place != axis)
    # a unit may go into a part that is read elsewhere: no scale travels back from one of them to its makers
    link = Link(passes=1, barrier=f"shuffled by {full_label(node)}")
    whole = weave([derive([part], link) for part in parts])
    out = [*data[:k], whole, *data[k + 2 :]]
    if shape != (*t.shape(data_of(node))[:k], whole[0].size, *t.shape(data_of(node))[k + 2 :]):
        why = Freeze("mismatch", f"shuffled and regrouped by {full_label(node)}")
        for axis in parts:
            freeze(axis, why)
        raise Mismatch("shuffled units that are regrouped")
    t.shuffles.append(parts)
    return out


def _rows(t: Trace, node: ir.Node) -> tuple[int, int, list[Axis]] | None:
    """(axis, number of parts, parts) where a Reshape, a Transpose and a Reshape shuffle a concatenation."""
    turned, last = _only_reader(node, "Transpose"), None
    if turned is not None and "perm" in turned.attributes:
        last = _only_reader(turned, "Reshape")
    before, after = t.shape(data_of(node)), t.shape(node.outputs[0])
    if turned is None or last is None or len(after) != len(before) + 1:
        return None
    order = [int(k) for k in turned.attributes["perm"].as_ints()]
    moved = [place for place, axis in enumerate(order) if place != axis]
    if len(moved) != 2 or moved[1] != moved[0] + 1:
        return None
    k = moved[0]
    count, n = after[k], after[k + 1]
    if count < 2 or n < 2 or after != (*before[:k], count, n, *before[k + 1 :]):
        return None
    found = factors(t.axes(data_of(node))[k])
    if len(found) != 1 or found[0].segments is None:
        return None
    woven = any(atom.woven is not None for part in summands(found[0]) for atom in part)
    if not (woven or _cut_later(last.outputs[0])):
        return None
    try:
        return k, count, cut((found[0],), [n] * count)
    except Mismatch:
        return None


def _only_reader(node: ir.Node, operator: str) -> ir.Node | None:
    """The node that alone reads a result, if it is of this type; copies that exporters write are passed over."""
    while True:
        value = node.outputs[0]
        readers = [use.node for use in value.uses()]
        if len(readers) != 1 or value.is_graph_output() or data_of(readers[0]) is not value:
            return None
        if readers[0].op_type == operator:
            return readers[0]
        if readers[0].op_type != "Identity":
            return None
        node = readers[0]


def _maker(value: ir.Value) -> ir.Node | None:
    """The node that a value comes from, copies passed over."""
    node = value.producer()
    while node is not None and node.op_type == "Identity":
        node = data_of(node).producer()
    return node


def _cut_later(value: ir.Value) -> bool:
    """Whether what was shuffled is cut again, right away or after functions of single units."""
    pending = [value]
    while pending:
        for use in pending.pop().uses():
            if use.node.op_type in _CUTS and use.idx == 0:
                return True
            if use.node.op_type in _THROUGH and use.idx == 0:
                pending.append(use.node.outputs[0])
    return False
