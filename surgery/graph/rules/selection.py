"""Operators that select along an axis: split, slice, gather, pad."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import onnx_ir as ir

from surgery.graph.atoms import UNIT, Axis, concat, factors, size_of
from surgery.graph.axes import derive
from surgery.graph.labels import full_label, label
from surgery.graph.operands import data_of
from surgery.graph.records import Number, Resize
from surgery.graph.rules.table import Table
from surgery.graph.trace import Opaque, Trace, is_symbolic

RULES = Table()

RUN_LIMIT = 4096
"""Most runs of consecutive indices that a Gather is followed through."""


@RULES("Split", axes="split axis: ordered sum; other axes: pointwise, zero and scale pass back")
def split(t: Trace, node: ir.Node) -> None:
    """Consecutive pieces of one axis."""
    x = data_of(node)
    data = t.axes(x)
    at = node.attributes.get_int("axis", 0) % len(data)
    sizes = [t.shape(value)[at] for value in node.outputs]
    pieces = _cut(t, node, x, at, sizes)
    used = [value for value in node.outputs if value.uses() or value.is_graph_output()]
    data = t.handed_on(x, data) if len(used) > 1 else data
    for k, (value, piece) in enumerate(zip(node.outputs, pieces, strict=True)):
        row = [*data[:at], piece, *data[at + 1 :]]
        t.put(value, chosen_place(row, data[at], sum(sizes[:k]), sizes[k]))
    if not is_symbolic(data[at]):
        where: int | str = 1 if t.facts.versions.get("", 13) >= 13 else "split"
        t.literal(node, where, lambda size: [size(piece) for piece in pieces])


@RULES("SplitToSequence", axes="split axis: ordered sum; other axes: pointwise, zero and scale pass back")
def split_to_sequence(t: Trace, node: ir.Node) -> None:
    """Like Split, as a sequence of pieces."""
    x, members = data_of(node), t.facts.sequences.get(node.outputs[0])
    if members is None:
        raise Opaque("a sequence whose length is only known at run time")
    data = t.axes(x)
    at = node.attributes.get_int("axis", 0) % len(data)
    pieces = _cut(t, node, x, at, [shape[at] for shape in members])
    starts = accumulate((shape[at] for shape in members), initial=0)
    rows = [
        chosen_place([*data[:at], piece, *data[at + 1 :]], data[at], start, shape[at])
        for piece, start, shape in zip(pieces, starts, members, strict=False)
    ]
    t.put_sequence(node.outputs[0], rows)
    split = node.inputs[1] if len(node.inputs) > 1 else None
    if split is None or is_symbolic(data[at]):
        return
    scalar = t.facts.known[split].ndim == 0

    def sizes(size: Resize) -> list[Number]:
        new = [size(piece) for piece in pieces]
        return [new[0]] if scalar and len({*new[:-1], max(new)}) == 1 else list(new)

    t.literal(node, 1, sizes)


@RULES("SequenceAt", axes="all axes: pointwise, zero and scale pass back")
def sequence_at(t: Trace, node: ir.Node) -> None:
    """One member of a sequence."""
    members, place = t.sequence(data_of(node)), t.numbers(node, 1)
    if members is None or not place:
        raise Opaque("a member of a sequence that is only known at run time")
    axes, several = members[place[0]], len(data_of(node).uses()) > 1
    t.put(node.outputs[0], t.handed_on(data_of(node), axes) if several else axes)


def _cut(t: Trace, node: ir.Node, x: ir.Value, at: int, sizes: Sequence[int]) -> list[Axis]:
    """Cut one axis of an operand; pieces of size 1 keep their place in a sum."""
    axis = t.axes(x)[at]
    if not axis:
        return [UNIT if n == 1 else t.new(n) for n in sizes]
    return t.cut(node, axis, sizes)


@RULES(
    "Slice",
    axes="sliced axis: ordered sum; axis with a stride: product with the frozen stride; "
    "other axes: pointwise, zero and scale pass back",
)
def slice_(t: Trace, node: ir.Node) -> None:
    """A range of units, or every s-th one, of some axes."""
    x, out = data_of(node), node.outputs[0]
    data, shape = t.axes(x), t.shape(out)
    starts, ends = t.numbers(node, 1, "starts") or [], t.numbers(node, 2, "ends") or []
    named = t.numbers(node, 3, "axes") or list(range(len(starts)))
    steps = t.numbers(node, 4) or [1] * len(starts)
    follow: list[Bounds | None] = []
    for start, axis, step in zip(starts, named, steps, strict=True):
        k = axis % len(data)
        n, count = t.shape(x)[k], shape[k]
        begin = max(0, min(n, start + n if start < 0 else start))
        whole = data[k]
        bounds: Bounds | None = None
        if step == 1:
            before, data[k], _ = _cut(t, node, x, k, [begin, count, n - begin - count])
            bounds = _between(whole, before, data[k])
            data = chosen_place(data, whole, begin, count)
        elif _strides(n, begin, step, count):
            data[k] = _every(t, node, whole, n // step)
            bounds = _throughout(whole, begin)
        else:
            why = f"taken in steps of {step}"
            t.freeze(node, whole, "opaque", why)
            data[k] = t.fixed(count, "opaque", f"{why} by {full_label(node)}")
        follow.append(None if is_symbolic(whole) else bounds)
    t.put(out, data)
    attribute = "starts" in node.attributes
    if any(follow):
        t.literal(node, "starts" if attribute else 1, lambda size: _edges(size, starts, follow, last=False))
        t.literal(node, "ends" if attribute else 2, lambda size: _edges(size, ends, follow, last=True))


@dataclass(frozen=True)
class Bounds:
    """Where a slice of an axis begins and ends after an edit."""

    whole: Axis
    start: Callable[[Resize], int]
    end: Callable[[Resize], int]


def _between(whole: Axis, before: Axis, taken: Axis) -> Bounds:
    return Bounds(whole, lambda size: size(before), lambda size: size(before) + size(taken))


def _throughout(whole: Axis, begin: int) -> Bounds:
    return Bounds(whole, lambda size: begin, lambda size: size(whole))


def _edges(size: Resize, old: Sequence[int], follow: Sequence[Bounds | None], *, last: bool) -> list[Number]:
    """The bounds of a slice after an edit; a bound that still means the same is kept as it was written."""
    out: list[Number] = []
    for bound, axis in zip(old, follow, strict=True):
        if axis is None:
            out.append(bound)
            continue
        n, wanted = size(axis.whole), (axis.end if last else axis.start)(size)
        means = max(0, min(n, bound + n if bound < 0 else bound))
        out.append(bound if means == wanted else wanted)
    return out


def _strides(n: int, begin: int, step: int, count: int) -> bool:
    """Whether x[begin::step] takes one of each block of `step` units."""
    return step > 0 and n % step == 0 and begin < step and count == n // step


def _every(t: Trace, node: ir.Node, axis: Axis, outer: int) -> Axis:
    """x[begin::step]: with n = outer · step, one of the step inner units of each outer one."""
    blocks, inner = t.split(node, axis, outer)
    t.freeze(node, inner, "literal", "a stride")
    return blocks


@RULES(
    "Gather",
    axes="axis with constant indices: ordered sum; axis indexed at run time: frozen; "
    "other axes: pointwise, zero and scale pass back",
)
def gather(t: Trace, node: ir.Node) -> None:
    """Units chosen by indices."""
    x, indices = data_of(node), node.inputs[1]
    assert indices is not None
    data = t.axes(x)
    at = node.attributes.get_int("axis", 0) % len(data)
    chosen = t.facts.ints(indices)
    shape = t.shape(indices)
    if chosen is None or sum(n != 1 for n in shape) > 1:
        t.freeze(node, data[at], "opaque", "indexed at run time")
        t.use("weight", x, data)
        rows = [t.merge(node, [(x, axis)]) for axis in data]
        # a zero index is no zero unit: nothing passes back
        places = [t.merge(node, [(indices, axis)], passes=0) for axis in t.axes(indices)]
        t.put(node.outputs[0], [*rows[:at], *places, *rows[at + 1 :]])
        return
    t.put(node.outputs[0], picked(t, node, at, chosen, shape))


def picked(t: Trace, node: ir.Node, at: int, chosen: list[int], shape: Sequence[int]) -> list[Axis]:
    """The axes of what a node takes from one axis of its first operand by constant indices of a shape."""
    x = data_of(node)
    data, units = t.axes(x), _pick(t, node, x, at, chosen)
    row = [*data[:at], *(UNIT if n == 1 else units for n in shape), *data[at + 1 :]]
    place = chosen[0] % t.shape(x)[at]
    return chosen_place(row, data[at], place, 1) if len(chosen) == 1 else row


def chosen_place(row: Sequence[Axis], chosen: Axis, start: int, count: int) -> list[Axis]:
    """The axes that are left where one place of a factor of another axis was chosen; they remember which one.

    Args:
      row: the axes. chosen: the axis of which `count` units from `start` on were taken.
    """
    counter = factors(chosen)
    if not counter or counter[0].woven is not None or count != size_of(tuple(counter[1:])):
        return list(row)
    made = [derive([axis]) if axis else axis for axis in row]
    for atom in (atom for axis in made for atom in axis):
        atom.link = replace(atom.link, place=(counter[0], start // count))
    return made


def _pick(t: Trace, node: ir.Node, x: ir.Value, at: int, written: list[int]) -> Axis:
    """Runs of consecutive indices as an ordered sum; the indices follow when what lies before them grows."""
    n = t.shape(x)[at]
    chosen = [k % n for k in written]
    if not chosen:
        raise Opaque("an empty selection")
    runs: list[list[int]] = []
    for k in chosen:
        if runs and runs[-1][1] == k:
            runs[-1][1] = k + 1
        else:
            runs.append([k, k + 1])
    if len(runs) > RUN_LIMIT:
        raise Opaque("a permutation of single units")
    bounds = sorted({0, n, *(edge for run in runs for edge in run)})
    pieces = _cut(t, node, x, at, [b - a for a, b in pairwise(bounds)])
    starts = dict(zip(bounds, range(len(bounds)), strict=True))
    spans = [pieces[starts[a] : starts[b]] for a, b in runs]

    def follow(size: Resize) -> list[Number]:
        offset = [0]
        for piece in pieces:
            offset.append(offset[-1] + size(piece))
        wanted = [k for a, b in runs for k in range(offset[starts[a]], offset[starts[b]])]
        same = len(wanted) == len(written) and all(
            (k + offset[-1] if k < 0 else k) == w for k, w in zip(written, wanted, strict=True)
        )
        return list(written) if same else list(wanted)

    if not is_symbolic(t.axes(x)[at]):
        t.literal(node, 1, follow)
    return concat([piece for span in spans for piece in span])


@RULES(
    "Pad",
    axes="padded axis: ordered sum with frozen padding; "
    "other axes: pointwise, zero and scale pass back through zero padding",
)
def pad(t: Trace, node: ir.Node) -> None:
    """Constant units before and after; negative amounts crop."""
    x, out = data_of(node), node.outputs[0]
    data = t.axes(x)
    pads = t.numbers(node, 1, "pads") or []
    named = t.numbers(node, 3) or list(range(len(data)))
    constant = node.attributes.get_string("mode", "constant") == "constant"
    value = t.scalar(node.inputs[2]) if len(node.inputs) > 2 else None
    if len(node.inputs) > 2 and node.inputs[2] is not None and (value is None or value.any()):
        data = [t.merge(node, [(x, axis)], passes=0) for axis in data]
    for i, axis in enumerate(named):
        k = axis % len(data)
        before, after = pads[i], pads[i + len(named)]
        if before == after == 0:
            continue
        if not constant or before < 0 or after < 0:
            t.freeze(node, data[k], "spatial", "padded or cropped")
            data[k] = t.fixed(t.shape(out)[k], "spatial", f"padded by node '{label(node)}'")
            continue
        why = f"padding of {full_label(node)}"
        edges = [[t.fixed(n, "literal", why)] if n else [] for n in (before, after)]
        data[k] = concat([*edges[0], data[k], *edges[1]])
    t.put(out, data)
