"""Attention as one operator (opset 23): heads are pointwise, the head size is contracted, positions are fixed."""

from __future__ import annotations

import math

import onnx_ir as ir

from surgery.graph.atoms import Axis, size_of
from surgery.graph.records import Number, Resize
from surgery.graph.rules.table import Table
from surgery.graph.trace import Opaque, Trace

RULES = Table()

Heads = tuple[Axis, Axis, Axis, Axis]
"""Batch, heads, positions, head size."""


@RULES(
    "Attention",
    axes="head size of queries and keys: contraction; batch, heads, head size of values: pointwise; positions: frozen",
)
def attention(t: Trace, node: ir.Node) -> None:
    """Y = softmax(scale · Q Kᵀ + mask) V, head by head; a group of query heads may share one key head."""
    q, k, v = node.inputs[0], node.inputs[1], node.inputs[2]
    assert q is not None and k is not None and v is not None
    if any(value is not None for value in node.inputs[4:]) or any(value.uses() for value in node.outputs[1:]):
        raise Opaque("attention with a cache")
    queries = _heads(t, node, q, "q_num_heads")
    keys, values = _heads(t, node, k, "kv_num_heads"), _heads(t, node, v, "kv_num_heads")
    t.same(node, keys[1], values[1])
    t.same(node, keys[2], values[2])
    shared = queries[1]
    if size_of(queries[1]) != size_of(keys[1]):
        shared, _ = t.split(node, queries[1], size_of(keys[1]))
    t.same(node, shared, keys[1])
    t.contract(node, (q, queries[3]), (k, keys[3]))
    for axis in (queries[2], keys[2]):
        t.freeze(node, axis, "spatial", "attended over")
    _keep_scale(t, node, keys[3])
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        _mask(t, node, node.inputs[3], (queries[1], queries[2], keys[2]))
    _put(t, node, (q, queries), (v, values))


def _heads(t: Trace, node: ir.Node, value: ir.Value, attribute: str) -> Heads:
    """[B, heads, L, d] as it is, [B, L, heads · d] split by the number of heads."""
    axes = t.axes(value)
    if len(axes) == 4:
        return axes[0], axes[1], axes[2], axes[3]
    heads, inner = t.split(node, axes[2], node.attributes.get_int(attribute, 1))
    t.literal(node, attribute, lambda size: [size(heads)])
    return axes[0], heads, axes[1], inner


def _keep_scale(t: Trace, node: ir.Node, inner: Axis) -> None:
    """The default scale is 1/√d: it is written out once d grows."""
    if "scale" in node.attributes:
        return
    before = size_of(inner)

    def scale(size: Resize) -> list[Number]:
        return [None if size(inner) == before else 1 / math.sqrt(before)]

    t.literal(node, "scale", scale)


def _mask(t: Trace, node: ir.Node, mask: ir.Value, scores: tuple[Axis, Axis, Axis]) -> None:
    """A mask is aligned with the scores [B, heads, L, S] at the right."""
    for own, axis in zip(reversed(t.axes(mask)), reversed(scores), strict=False):
        if own and size_of(own) == size_of(axis):
            t.same(node, own, axis)
        elif own:
            t.freeze(node, own, "literal", "used as a mask")


def _put(t: Trace, node: ir.Node, query: tuple[ir.Value, Heads], value: tuple[ir.Value, Heads]) -> None:
    q, queries = query
    v, values = value
    batch = t.merge(node, [(q, queries[0]), (v, values[0])], mode="any", passes=0)
    heads = t.merge(node, [(q, queries[1])], passes=0)
    inner = t.merge(node, [(v, values[3])])
    if len(t.axes(q)) == 4:
        t.put(node.outputs[0], [batch, heads, queries[2], inner])
    else:
        t.put(node.outputs[0], [batch, queries[2], heads + inner])
