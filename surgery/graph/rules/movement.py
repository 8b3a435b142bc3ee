"""Operators that regroup axes without touching numbers: reshape, transpose, concatenate, expand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import onnx_ir as ir

from surgery.graph.atoms import UNIT, Axis, Freeze, Mismatch, concat, factors, freeze, size_of
from surgery.graph.axes import take
from surgery.graph.labels import full_label, label
from surgery.graph.operands import data_of, operands
from surgery.graph.records import Computed, Number, Resize
from surgery.graph.rules import shuffle
from surgery.graph.rules.table import Table
from surgery.graph.singles import alone
from surgery.graph.trace import Opaque, Trace, is_symbolic

RULES = Table()


@RULES("Reshape", axes="all axes: product")
def reshape(t: Trace, node: ir.Node) -> None:
    """The elements in order, read with other boundaries."""
    x, out = data_of(node), node.outputs[0]
    axes = shuffle.parted(t, node) or shuffle.joined(t, node) or regroup(t, node, t.axes(x), t.shape(out))
    t.put(out, axes)
    t.literal(node, 1, lambda size: dims(size, axes), shape=True)


@RULES("Flatten", axes="all axes: product")
def flatten(t: Trace, node: ir.Node) -> None:
    """[a, b, c, d] -> [a·b, c·d]."""
    data = t.axes(data_of(node))
    at = node.attributes.get_int("axis", 1)
    at = at + len(data) if at < 0 else at
    t.put(node.outputs[0], [tuple(a for axis in part for a in axis) for part in (data[:at], data[at:])])


def dims(size: Resize, axes: Sequence[Axis]) -> list[Number]:
    """The sizes of axes as a shape operand; what contains a symbolic dimension is left to the graph."""
    return [Computed(size(axis)) if is_symbolic(axis) else size(axis) for axis in axes]


def regroup(t: Trace, node: ir.Node, axes: Sequence[Axis], shape: Sequence[int]) -> list[Axis]:
    """The axes of a reshaped value; a group of axes that cannot be regrouped is frozen by itself."""
    out: list[Axis] = []
    for before, after in _groups([math.prod(a.size for a in axis) for axis in axes], shape):
        parts = [atom for axis in axes[before] for atom in factors(axis)]
        target = shape[after]
        try:
            made = []
            for n in target:
                single = n == 1 and len(parts) == 1 and parts[0].size == 1
                head, parts = (parts, []) if single else take(parts, n)
                made.append(tuple(head))
            for atom in parts:
                alone(node, (atom,), "it is regrouped")
        except Mismatch as mismatch:
            why = Freeze("mismatch", f"{mismatch} at {full_label(node)}")
            for axis in axes[before]:
                freeze(axis, why)
            made = [t.fixed(n, why.kind, why.reason) for n in target]
        out.extend(made)
    return out


def _groups(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """The finest runs of axes with equal products on both sides."""
    i = j = 0
    while i < len(before) or j < len(after):
        start = i, j
        if [*before[i : i + 1]] == [*after[j : j + 1]]:
            i, j = i + 1, j + 1
            yield slice(start[0], i), slice(start[1], j)
            continue
        a = b = 1
        while True:
            if a == b and (i, j) != start:
                break
            if (a <= b or j == len(after)) and i < len(before):
                a *= before[i]
                i += 1
            elif j < len(after):
                b *= after[j]
                j += 1
            else:
                raise Opaque("a reshape that changes the number of elements")
        yield slice(start[0], i), slice(start[1], j)


@RULES("Transpose", axes="all axes: pointwise, zero and scale pass back")
def transpose(t: Trace, node: ir.Node) -> None:
    """Axes in another order."""
    data = t.axes(data_of(node))
    order = t.numbers(node, 9, "perm") or list(range(len(data)))[::-1]
    t.put(node.outputs[0], [data[k] for k in order])


@RULES("Squeeze", axes="all axes: pointwise, zero and scale pass back")
def squeeze(t: Trace, node: ir.Node) -> None:
    """Remove axes of size 1."""
    data = t.axes(data_of(node))
    named = t.numbers(node, 1, "axes")
    shape = t.shape(data_of(node))
    gone = {k % len(data) for k in named} if named is not None else {k for k, n in enumerate(shape) if n == 1}
    for k in gone:
        alone(node, data[k], "it is taken away")
    t.put(node.outputs[0], [axis for k, axis in enumerate(data) if k not in gone])


@RULES("Unsqueeze", axes="all axes: pointwise, zero and scale pass back")
def unsqueeze(t: Trace, node: ir.Node) -> None:
    """Insert axes of size 1."""
    data = t.axes(data_of(node))
    named = t.numbers(node, 1, "axes") or []
    rank = len(data) + len(named)
    new, rest = {k % rank for k in named}, iter(data)
    t.put(node.outputs[0], [UNIT if k in new else next(rest) for k in range(rank)])


@RULES("Concat", axes="joined axis: ordered sum; other axes: pointwise, zero and scale pass back")
def concatenate(t: Trace, node: ir.Node) -> None:
    """Operands one after the other along one axis."""
    values = operands(node)
    rows = [t.axes(value) for value in values]
    rank = len(rows[0])
    at = node.attributes.get_int("axis", 0) % rank
    out: list[Axis] = []
    for k in range(rank):
        if k == at:
            out.append(concat([row[k] for row in rows]))
        else:
            if size_of(rows[0][k]) == 1:
                t.same(node, *(row[k] for row in rows))
            column = [(v, row[k]) for v, row in zip(values, rows, strict=True) if factors(row[k])]
            out.append(t.merge(node, column))
    if not t.constant(node.outputs[0]):
        t.productions.extend((row[at], row[at]) for v, row in zip(values, rows, strict=True) if t.constant(v))
    t.put(node.outputs[0], out)


@RULES("Expand", axes="axes of size 1: free; other axes: pointwise, zero and scale pass back")
def expand(t: Trace, node: ir.Node) -> None:
    """Repeat along axes of size 1."""
    x, out = data_of(node), node.outputs[0]
    data, shape = t.axes(x), t.shape(out)
    row = [UNIT] * (len(shape) - len(data)) + data
    for axis, n in zip(row, shape, strict=True):
        if n != 1:
            alone(node, axis, "it is repeated")
    operand = node.inputs[1]
    first = len(shape) - t.shape(operand)[0] if operand is not None else 0
    axes = [
        axis if factors(axis) else _made(t, node, n, operand, k - first)
        for k, (axis, n) in enumerate(zip(row, shape, strict=True))
    ]
    t.put(out, axes)
    t.literal(node, 1, lambda size: dims(size, axes), shape=True)


def _made(t: Trace, node: ir.Node, n: int, operand: ir.Value | None, element: int) -> Axis:
    """A new axis whose size is an element of an operand."""
    if t.follows_symbol(operand, element):
        return t.fixed(n, "symbolic", f"axis made by node '{label(node)}' from a symbolic one")
    return t.new(n)


@RULES("ConstantOfShape", axes="all axes: free")
def constant_of_shape(t: Trace, node: ir.Node) -> None:
    """One number everywhere."""
    out = node.outputs[0]
    axes = [_made(t, node, n, node.inputs[0], k) for k, n in enumerate(t.shape(out))]
    t.put(out, axes)
    t.literal(node, 0, lambda size: dims(size, axes), shape=True)


@RULES(
    "Tile", axes="repeated axis: product with frozen repeats; other axes: pointwise, zero and scale pass back"
)
def tile(t: Trace, node: ir.Node) -> None:
    """The whole value again and again along an axis."""
    data = t.axes(data_of(node))
    repeats = t.numbers(node, 1) or []
    why = f"the repeats of {full_label(node)}"
    t.put(node.outputs[0], [t.fixed(n, "literal", why) + axis for n, axis in zip(repeats, data, strict=True)])
